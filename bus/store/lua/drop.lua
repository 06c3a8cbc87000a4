#!lua flags=allow-oom
-- Drop dead letters for good.
--
-- KEYS  1 prefix
-- ARGV  jobs
-- Answer for each: 1, or 0 where there is no such dead letter

local answer, dropped = {}, {}
for _, job in ipairs(ARGV) do
  answer[#answer + 1] = call('HDEL', P .. 'letters', job)
  if answer[#answer] == 1 then
    call('ZREM', P .. 'dead', job)
    dropped[#dropped + 1] = job
  end
end
forget(dropped)
return answer
