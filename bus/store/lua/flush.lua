#!lua flags=allow-oom
-- Drop all unfinished jobs of a queue, or of one handler on it. What is in flight is struck from the books, so its settles are refused.
--
-- KEYS  1 prefix
-- ARGV  1 queue, 2 handler, or "" for all
-- Answer how many were dropped

local queue, dropped = ARGV[1], {}

local function is_meant(of, handler)
  return of == queue and (ARGV[2] == '' or ARGV[2] == handler)
end

local function drop_lane(handler, key)
  local lane = P .. 'lane:' .. queue .. '|' .. handler .. '|' .. key
  for _, job in ipairs(call('LRANGE', lane, 0, -1)) do dropped[#dropped + 1] = job end
  call('DEL', lane)
end

for _, worker in ipairs(call('ZRANGE', P .. 'workers', 0, -1)) do
  local books = call('HGETALL', P .. 'held:' .. worker)
  for i = 1, #books, 2 do
    local _, _, of, handler, key = unpack_held(books[i + 1])
    if is_meant(of, handler) then
      call('HDEL', P .. 'held:' .. worker, books[i])
      if key == '' then dropped[#dropped + 1] = books[i] else drop_lane(handler, key) end
    end
  end
end

for _, member in ipairs(call('ZRANGE', P .. 'due', 0, -1)) do
  local kind, job, _, of, handler, key = unpack_due(member)
  if is_meant(of, handler) then
    call('ZREM', P .. 'due', member)
    if kind == 'L' then drop_lane(handler, key) else dropped[#dropped + 1] = job end
  end
end

for _, name in ipairs(call('HKEYS', P .. 'pending')) do
  local of, handler = string.match(name, '^([^|]*)|(.*)$')
  if is_meant(of, handler) then
    for lost = SUSPECT, MOST_SUSPECT do
      local row = P .. 'suspects:' .. name .. '|' .. lost
      for _, entry in ipairs(call('LRANGE', row, 0, -1)) do
        local _, job, key = unpack_suspect(entry)
        if key == '' then dropped[#dropped + 1] = job else drop_lane(handler, key) end
      end
      call('DEL', row)
    end
    call('HDEL', P .. 'suspects', name)
    for prio = 0, 2 do
      local ready = P .. 'ready:' .. name .. '|' .. prio
      for _, entry in ipairs(call('LRANGE', ready, 0, -1)) do
        local job, key = unpack_ready(entry)
        if key == '' then dropped[#dropped + 1] = job else drop_lane(handler, key) end
      end
      call('DEL', ready)
    end
    call('HDEL', P .. 'pending', name)
  end
end

forget(dropped)
return #dropped
