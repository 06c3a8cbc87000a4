#!lua
-- Make dead letters work again: each joins the tail of its lane, in the order in which they are named.
--
-- KEYS  1 prefix
-- ARGV  for each: job, notes that it begins anew with
-- Answer for each: 1, or 0 where there is no such dead letter

local answer = {}
for at = 1, #ARGV, 2 do
  local job = ARGV[at]
  local letter = call('HGET', P .. 'letters', job)
  if letter then
    local prio, queue, handler, key = string.match(letter, '^[^|]*|(%d)|([^|]*)|([^|]*)|(.*)$')
    call('HDEL', P .. 'letters', job)
    call('ZREM', P .. 'dead', job)
    call('HDEL', P .. 'lost', job)
    call('HSET', P .. 'jobs', job .. 'n', ARGV[at + 1])
    call('HINCRBY', P .. 'pending', queue .. '|' .. handler, 1)
    place_job(prio, queue, handler, key, job, 0, 0)
    answer[#answer + 1] = 1
  else
    answer[#answer + 1] = 0
  end
end
ring_all()
return answer
