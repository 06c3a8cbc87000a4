#!lua flags=allow-oom
-- Tell the live listeners of a log what gets no number and leaves no trace. A full server takes it, hence allow-oom:
-- handlers that drain it report their progress.
--
-- KEYS  1 prefix
-- ARGV  1 log, 2 offered epoch, then for each: topics, body
-- Answer {epoch, seq, token of the log's top, after which they came, how many heard the last of them}
--        with -1 for the last if the log is closed: nothing was told

local top = look_at(P .. 'top:' .. ARGV[1], ARGV[2])
if top.closed then return { top.epoch, top.seq, top.token, -1 } end

local channel = P .. 'live:' .. ARGV[1]
local heard = 0
local after = string.format('%s.%d %s ~ ', top.epoch, top.seq, top.token)
for at = 3, #ARGV, 2 do
  heard = call('PUBLISH', channel, after .. ARGV[at] .. '\n' .. ARGV[at + 1])
end
return { top.epoch, top.seq, top.token, heard }
