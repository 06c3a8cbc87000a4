#!lua flags=allow-oom
-- Tell the live listeners of a log what gets no number and leaves no trace. A full server takes it, hence allow-oom:
-- handlers that drain it report their progress.
--
-- KEYS  1 prefix
-- ARGV  1 log, 2 offered epoch, then for each: topics, body
-- Answer {epoch, seq, token of the log's top, after which they came, 1 if it is closed (and nothing was told) else 0}

local meta = P .. 'top:' .. ARGV[1]
call('HSETNX', meta, 'e', ARGV[2])
local top = call('HMGET', meta, 'e', 's', 'k', 'c')
local epoch, seq, token = top[1], top[2] or '0', top[3] or '0'
if top[4] then return { epoch, tonumber(seq), token, 1 } end

local channel, after = P .. 'live:' .. ARGV[1], epoch .. '.' .. seq .. ' ' .. token .. ' ~ '
for at = 3, #ARGV, 2 do
  call('PUBLISH', channel, after .. ARGV[at] .. '\n' .. ARGV[at + 1])
end
return { epoch, tonumber(seq), token, 0 }
