#!lua flags=allow-oom
-- Remove bindings: nothing more is queued for these handlers. What is queued stays.
--
-- KEYS  1 prefix
-- ARGV  handlers
-- Answer for each: 1, or 0 where there was no such binding

local answer, changed = {}, false
for i, handler in ipairs(ARGV) do
  answer[i] = call('HDEL', P .. 'bindings', handler)
  changed = changed or answer[i] == 1
end
if changed then new_version() end

for _, name in ipairs(call('HKEYS', P .. 'pending')) do
  local handler = string.match(name, '|(.*)$')
  for _, gone in ipairs(ARGV) do
    if handler == gone and call('HGET', P .. 'pending', name) == '0' then call('HDEL', P .. 'pending', name) end
  end
end
return answer
