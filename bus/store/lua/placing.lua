-- Shared by the scripts that queue new jobs, and put in front of them as lanes.lua is, on which it stands.

local function due_at(due, now)
  if due == '' then return 0 end
  local kind = string.sub(due, 1, 1)
  if kind == '+' then return now + tonumber(string.sub(due, 2)) end
  if kind == '=' then return tonumber(string.sub(due, 2)) end
  return 0
end

-- A worker that stands by and holds nothing is handed a new job at once, without a ring and a take: it has the job's bytes before
-- whoever published has an answer. Only where nothing is ready before it, and nobody has to be asked whether it may be taken.
-- Answers whether somebody has it. A worker that does not hear (any more) has died, or lost its connection. Where nobody was
-- found once, a batch does not look again.
local in_vain = {}
local function give_cue(prio, queue, handler, key, job, body)
  local name = queue .. '|' .. handler
  if in_vain[name] then return false end
  local some, ready = call('HRANDFIELD', P .. 'standby', 3, 'WITHVALUES'), P .. 'ready:' .. name
  local route = '|' .. prio .. '|' .. name .. '|'
  for i = 1, #some, 2 do
    local worker, entry = some[i], some[i + 1]
    if string.find(entry, ' ' .. name .. ' ', 1, true) then
      local held, ticket = P .. 'held:' .. worker, string.sub(entry, 1, 16)
      local obstacles = call('EXISTS', held, ready .. '|0', ready .. '|1', ready .. '|2', P .. 'suspects', P .. 'apart', P .. 'paused')
      if obstacles == 0 then
        if call('PUBLISH', P .. 'cue:' .. worker, ticket .. '|' .. job .. route .. #key .. '|' .. key .. body) > 0 then
          call('HSET', held, job, ticket .. '|1' .. route .. key)
          return true
        end
        call('HDEL', P .. 'standby', worker)
      end
    end
  end
  in_vain[name] = true
  return false
end

-- A new job waits in its lane, or until it is due. No lease was lost under it yet. Its body and its count are the caller's to
-- write; where that body is all that there is of it, it may be handed over at once.
local function place_job(prio, queue, handler, key, job, due, now, body)
  if due > now then
    delay(due, 'J', prio, queue, handler, job, key)
  elseif enter_lane(queue, handler, key, job) then
    if body and give_cue(prio, queue, handler, key, job, body) then return end
    make_ready(prio, queue, handler, key, job)
  end
end
