#!lua flags=allow-oom
-- A consistent look at a log. Creates the epoch if there is none, so that nobody ever attaches to a log without one.
--
-- KEYS  1 prefix
-- ARGV  1 log, 2 offered epoch, 3 after (a seq), 4 limit
-- Answer {epoch, top seq, top token, 1 if it is closed else 0, for each entry: seq, token, prev, topics, body}

local meta, stream = P .. 'top:' .. ARGV[1], P .. 'log:' .. ARGV[1]
local top = look_at(meta, ARGV[2])
local answer = { top.epoch, top.seq, top.token, top.closed and 1 or 0 }

local limit, after = tonumber(ARGV[4]), tonumber(ARGV[3])
if limit > 0 and after < top.seq then
  local oldest = now_ms() - top.ttl
  local function past_its_age(entry) return tonumber(entry[2][2]) < oldest end
  local found = call('XRANGE', stream, string.format('%d-1', after), '+', 'COUNT', limit)
  -- The page begins at the first entry that counts. After it nothing is left out, whatever the clock did meanwhile: a
  -- page has no hole.
  while found[1] and past_its_age(found[1]) do
    local n = 1
    while found[n + 1] and past_its_age(found[n + 1]) do n = n + 1 end
    found = call('XRANGE', stream, '(' .. found[n][1], '+', 'COUNT', limit)
  end
  for _, entry in ipairs(found) do
    local n, f = #answer, entry[2]
    answer[n + 1] = tonumber(string.match(entry[1], '^%d+'))
    answer[n + 2], answer[n + 3], answer[n + 4], answer[n + 5] = f[4], f[6], f[8], f[10]
  end
end
return answer
