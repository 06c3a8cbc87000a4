#!lua flags=allow-oom
-- End deliveries. Draining must go on when the server is full, hence allow-oom.
--
-- KEYS  1 prefix
-- ARGV  1 worker, then each settlement: job|ticket|verdict|delay ms|notes
-- Answer for each settlement: 1, or 0 where the worker does not hold that job under that ticket

local held = P .. 'held:' .. ARGV[1]
local now = now_ms()
local answer, done = {}, {}

local function settle(job, verdict, delay_ms, notes, prio, queue, handler, key)
  call('HDEL', held, job)
  if verdict == 'ack' then
    done[#done + 1] = job
    call('HINCRBY', P .. 'pending', queue .. '|' .. handler, -1)
    leave_lane(prio, queue, handler, key)
    return
  end
  if verdict == 'back' then
    put_back(prio, queue, handler, key, job)
    return
  end
  call('HSET', P .. 'notes', job, notes)
  if verdict == 'dead' then
    bury(job, 'dead', prio, queue, handler, key, now)
    return
  end
  if verdict == 'retry' and key ~= '' then
    delay(now + delay_ms, 'L', prio, queue, handler, job, key)
  else
    leave_lane(prio, queue, handler, key)
    delay(now + delay_ms, 'J', prio, queue, handler, job, key)
  end
end

for at = 2, #ARGV do
  local job, ticket, verdict, delay_ms, notes = string.match(ARGV[at], '^([^|]*)|([^|]*)|(%a+)|(%-?%d+)|(.*)$')
  local record = call('HGET', held, job)
  local current, prio, queue, handler, key
  if record then current, prio, queue, handler, key = unpack_held(record) end
  if current == tonumber(ticket) then
    settle(job, verdict, tonumber(delay_ms), notes, prio, queue, handler, key)
    answer[#answer + 1] = 1
  else
    answer[#answer + 1] = 0
  end
end
forget(done)
rejoin(ARGV[1])
ring_all()
return answer
