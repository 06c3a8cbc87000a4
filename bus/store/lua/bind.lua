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
local version = tonumber(call('HGET', P .. 'meta', 'v') or 0)
if changed then
  -- A time, not a count: after a loss of data no version comes a second time, so no publisher's cache can pass for new.
  version = math.max(version + 1, now_ms())
  call('HSET', P .. 'meta', 'v', string.format('%d', version))
end
return version
