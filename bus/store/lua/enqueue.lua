#!lua
-- Queue one job that has no event.
--
-- KEYS  1 prefix
-- ARGV  1 id, 2 window ms, 3 queue, 4 handler, 5 priority, 6 lane key, 7 body, 8 due
-- Answer 1, or 0 where this id was queued within the window

if not call('SET', P .. 'sent:' .. ARGV[1], '1', 'NX', 'PX', ARGV[2]) then return 0 end
local now = now_ms()
local job = string.format('%d', call('HINCRBY', P .. 'meta', 'j', 1))
call('HSET', P .. 'jobs', job, ARGV[7])
call('HINCRBY', P .. 'pending', ARGV[3] .. '|' .. ARGV[4], 1)
place_job(ARGV[5], ARGV[3], ARGV[4], ARGV[6], job, due_at(ARGV[8], now), now, ARGV[7])
ring_all()
return 1
