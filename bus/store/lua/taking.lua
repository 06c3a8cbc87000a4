-- Shared by the scripts that hand out work, and put in front of them as lanes.lua is, on which it stands.

-- What a hash has in each of these fields: false where it has nothing.
local function values_of(hash, fields)
  local values = {}
  for first = 1, #fields, 1000 do
    for _, value in ipairs(call('HMGET', P .. hash, unpack(fields, first, math.min(first + 999, #fields)))) do
      values[#values + 1] = value
    end
  end
  return values
end

-- A wish as it is fulfilled: what is handed out, what room is left for more, all in all and of each handler that it is not to be
-- `without`.
local function new_tray(ticket, room, queue, first, last, without)
  local tray = { ticket = ticket, room = room, queue = queue, handlers = {}, left = {} }
  tray.jobs, tray.from, tray.records = {}, {}, {}
  for at = first, last, 2 do
    local handler = ARGV[at]
    if not without[queue] and not without[queue .. '|' .. handler] then
      tray.handlers[#tray.handlers + 1] = handler
      tray.left[handler] = tonumber(ARGV[at + 1])
    end
  end
  return tray
end

local function hand_out(tray, job, prio, handler, key)
  local jobs, records = tray.jobs, tray.records
  tray.room = tray.room - 1
  tray.left[handler] = tray.left[handler] - 1
  jobs[#jobs + 1] = job
  tray.from[#jobs] = { prio, handler, key }
  records[#records + 1] = job
  records[#records + 1] = tray.ticket .. '|' .. #jobs .. '|' .. prio .. '|' .. tray.queue .. '|' .. handler .. '|' .. key
end

-- One handler's share of one priority. Answers how many there were.
local function hand_out_fresh(tray, name, handler, prio, n)
  local entries = n > 0 and call('LPOP', P .. 'ready:' .. name .. '|' .. prio, n) or {}
  for _, entry in ipairs(entries) do
    local job, key = unpack_ready(entry)
    hand_out(tray, job, prio, handler, key)
  end
  return #entries
end

-- Priority by priority, and within one, a turn each, for as long as somebody had more than its share. Answers whether there
-- was any.
local function take_fresh(tray)
  local got = false
  for prio = 0, 2 do
    local more = true
    while more and tray.room > 0 do
      more = false
      local share = math.ceil(tray.room / #tray.handlers)
      for _, handler in ipairs(tray.handlers) do
        local name, n = tray.queue .. '|' .. handler, math.min(share, tray.room, tray.left[handler])
        local came = hand_out_fresh(tray, name, handler, prio, n)
        got = got or came > 0
        more = more or (came > 0 and came == n)
      end
    end
  end
  return got
end

-- Whoever fills up with work left over passes the wake-up on; who does not has taken what the settling made ready.
local function pass_rings_on(tray)
  for _, handler in ipairs(tray.handlers) do
    local name = tray.queue .. '|' .. handler
    if tray.room == 0 or tray.left[handler] == 0 then
      if any_ready(name) then ring(name) end
    elseif rung[name] and call('HEXISTS', P .. 'suspects', name) == 0 then
      rung[name] = nil
    end
  end
end

-- The jobs are the worker's from now on, in its books.
local function answer_of(tray, books)
  local answer, jobs, from = { tray.apart or '' }, tray.jobs, tray.from
  if #jobs == 0 then return answer end
  hset_all(books, tray.records)
  local lost, told = is_any_lost() and values_of('lost', jobs) or {}, values_of('jobs', places_of(jobs))
  for i, job in ipairs(jobs) do
    answer[#answer + 1] = job .. '|' .. from[i][1] .. '|' .. (lost[i] or '0') .. '|' .. from[i][2] .. '|' .. from[i][3]
    answer[#answer + 1] = told[2 * i - 1] or ''
    answer[#answer + 1] = told[2 * i] or ''
  end
  return answer
end
