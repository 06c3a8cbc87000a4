#!lua flags=no-writes,allow-oom
-- The lanes that wait for the retry of their head, the next due first.
--
-- KEYS  1 prefix
-- ARGV  1 how many at most
-- Answer for each: job, priority, queue, handler, key, ms until due, jobs behind it, body, notes
--
-- It looks at up to 10,000 delayed entries, as the census does.

local now, answer, found = now_ms(), {}, 0
local due = call('ZRANGE', P .. 'due', 0, 9999, 'WITHSCORES')
for i = 1, #due, 2 do
  local kind, job, prio, queue, handler, key = unpack_due(due[i])
  if kind == 'L' and found < tonumber(ARGV[1]) then
    found = found + 1
    local n = #answer
    answer[n + 1], answer[n + 2], answer[n + 3], answer[n + 4], answer[n + 5] = job, prio, queue, handler, key
    answer[n + 6] = math.max(0, tonumber(due[i + 1]) - now)
    answer[n + 7] = call('LLEN', P .. 'lane:' .. queue .. '|' .. handler .. '|' .. key) - 1
    answer[n + 8] = call('HGET', P .. 'jobs', job) or ''
    answer[n + 9] = call('HGET', P .. 'jobs', job .. 'n') or ''
  end
end
return answer
