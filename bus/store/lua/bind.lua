#!lua flags=allow-oom
-- Add or replace bindings; the version moves only where one really changed. Allow-oom: a worker binds as it
-- boots, and a full server is drained by workers.
--
-- KEYS  1 prefix
-- ARGV  handler, binding, handler, binding, ...
-- Answer the version

local changed = false
for i = 1, #ARGV, 2 do
  if call('HGET', P .. 'bindings', ARGV[i]) ~= ARGV[i + 1] then
    call('HSET', P .. 'bindings', ARGV[i], ARGV[i + 1])
    changed = true
  end
end
if changed then return new_version() end
return tonumber(call('HGET', P .. 'meta', 'v') or 0)
