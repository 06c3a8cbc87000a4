#!lua flags=allow-oom
-- End a log: nothing new is appended to it, and whoever reads it is told so. Safe twice. A full server takes it, hence
-- allow-oom: what it costs it gives back when the log is forgotten.
--
-- KEYS  1 prefix
-- ARGV  1 log, 2 offered epoch, 3 cap of its own or "", 4 ttl ms of its own or "", 5 how long its end is remembered (ms)
-- Answer {epoch, seq, token} of its top
--
-- The end stands in the log's meta hash, so it outlives every entry. The hash is forgotten as a whole, and no sooner than
-- the stream: an entry without its number would be a hole.

local log, cap, ttl = ARGV[1], tonumber(ARGV[3]), tonumber(ARGV[4])
local meta, stream, now = P .. 'top:' .. log, P .. 'log:' .. log, now_ms()
call('HSETNX', meta, 'e', ARGV[2])
call('HSETNX', meta, 'c', now)
if cap then
  call('HSET', meta, 'n', cap)
  call('XTRIM', stream, 'MAXLEN', '=', cap)
end
if ttl then
  call('HSET', meta, 'l', ttl, 'x', ttl)
  call('PEXPIRE', stream, ttl + 1000)
end

local top = call('HMGET', meta, 'e', 's', 'k', 'x')
local epoch, seq, token = top[1], top[2] or '0', top[3] or '0'
local lasts = math.max(tonumber(ARGV[5]), tonumber(top[4] or 0) + 1000)
call('PEXPIRE', meta, lasts)
call('SREM', P .. 'logs', log)
call('ZADD', P .. 'ended', now + lasts, log)
call('ZREMRANGEBYSCORE', P .. 'ended', '-inf', now)
call('PUBLISH', P .. 'live:' .. log, epoch .. '.' .. seq .. ' ' .. token .. ' . \n')
return { epoch, tonumber(seq), token }
