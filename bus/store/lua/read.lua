#!lua flags=allow-oom
-- A consistent look at a log. Creates the epoch if there is none, so that nobody ever attaches to a log without one.
--
-- KEYS  1 prefix
-- ARGV  1 log, 2 offered epoch, 3 after (a seq), 4 limit
-- Answer {epoch, top seq, top token, for each entry: seq, token, prev, topics, body}

local meta, stream = P .. 'top:' .. ARGV[1], P .. 'log:' .. ARGV[1]
call('HSETNX', meta, 'e', ARGV[2])
local top = call('HMGET', meta, 'e', 's', 'k', 'x')
local answer = { top[1], tonumber(top[2] or 0), top[3] or '0' }

local limit, after = tonumber(ARGV[4]), tonumber(ARGV[3])
if limit > 0 and after < answer[2] then
  local oldest = now_ms() - tonumber(top[4] or 0)
  local found = call('XRANGE', stream, string.format('%d-1', after), '+', 'COUNT', limit)
  -- A page of expired entries only would look like the end of the log: go on to the first one that counts.
  while #found == limit and tonumber(found[#found][2][2]) < oldest do
    found = call('XRANGE', stream, '(' .. found[#found][1], '+', 'COUNT', limit)
  end
  for _, entry in ipairs(found) do
    local f = entry[2]
    if tonumber(f[2]) >= oldest then
      local n = #answer
      answer[n + 1] = tonumber(string.match(entry[1], '^%d+'))
      answer[n + 2], answer[n + 3], answer[n + 4], answer[n + 5] = f[4], f[6], f[8], f[10]
    end
  end
end
return answer
