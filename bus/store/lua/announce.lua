#!lua flags=allow-oom
-- Tell the live listeners of a log something that gets no number and leaves no trace. A full server
-- takes it, hence allow-oom: handlers that drain it report their progress.
--
-- KEYS  1 prefix
-- ARGV  1 log, 2 offered epoch, 3 topics, 4 body
-- Answer {epoch, seq, token} of the log's top, after which it came

local meta = P .. 'top:' .. ARGV[1]
call('HSETNX', meta, 'e', ARGV[2])
local top = call('HMGET', meta, 'e', 's', 'k')
local epoch, seq, token = top[1], top[2] or '0', top[3] or '0'
call('PUBLISH', P .. 'live:' .. ARGV[1], epoch .. '.' .. seq .. ' ' .. token .. ' ~ ' .. ARGV[3] .. '\n' .. ARGV[4])
return { epoch, tonumber(seq), token }
