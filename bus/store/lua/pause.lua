#!lua flags=allow-oom
-- Stop or resume the taking of a queue's jobs, or of one handler's.
--
-- KEYS  1 prefix
-- ARGV  1 queue, or queue|handler; 2 "1" to pause, "0" to resume
-- Answer 1 where that changed something, else 0

if ARGV[2] == '1' then return call('SADD', P .. 'paused', ARGV[1]) end
local changed = call('SREM', P .. 'paused', ARGV[1])
for _, name in ipairs(call('HKEYS', P .. 'pending')) do
  if name == ARGV[1] or string.match(name, '^[^|]*') == ARGV[1] then ring(name) end
end
ring_all()
return changed
