-- Shared by the scripts, as placing.lua and taking.lua are. The loader puts in front of each the paragraphs that define what it names, and what
-- those name, and no others (see bus/store/redis/scripts.py).
--
-- All keys are KEYS[1], the namespace's tagged prefix, plus a name; so all are in one slot.
--   meta                         hash    v: bindings' version, j: last job number, b: last beat (ms)
--   bindings                     hash    handler -> encoded binding
--   log:name, top:name           stream  of entries; hash e: epoch, s: top seq, k: its token, o: time of the oldest
--                                entry or before, x: ttl ms in force, r: when its expiry was set (ms), n: cap and l: ttl ms
--                                of its own, c: when it was closed (ms); a closed one has an expiry
--   logs                         set     names of the logs that were written to, without the closed ones
--   ended                        zset    closed log -> when its end is forgotten (ms)
--   live:name                    channel
--   seen:id                      string  position of a published event, for the idempotency window
--   piece:epoch                  string  which piece of a batch went in last, until its last one has
--   sent:id                      string  "1" for a job without an event, for its window
--   jobs                         hash    job -> body: "e" and an event's bytes, or whatever enqueue was given; job.."n" ->
--                                bytes of the last settle. In one hash, so that one command has both
--   lost                         hash    job -> leases that ran out under it
--   lane:queue|handler|key       list    jobs of one lane, the head first; the head stays while it is worked on
--   ready:queue|handler|prio     list    job|key, what can be taken: heads of lanes, and jobs without one
--   suspects                     hash    queue|handler, of all with jobs whose workers keep dying -> whose turn it is:
--                                "s" for these, "f" for fresh work
--   suspects:queue|handler|lost  list    prio|job|key of these jobs, by lost leases: 2, 3, or 4 and more
--   apart                        hash    worker -> queue|handler|"+"|since (ms)|patience (ms) while it works on a suspect
--                                alone, and without the "+" while it makes room for one: so long it is handed nothing. When
--                                it holds nothing it has no entry
--   paused                       set     queue or queue|handler: nothing of it is taken
--   wake:name                    list    at most one token; workers block on it
--   standby                      hash    worker -> ticket in 16 digits, and queue|handler of all that it takes work for, each after
--                                a space and before one: a thread of it waits for its cue, which it is given while it
--                                holds nothing
--   cue:worker                   channel on which that thread hears: ticket|job|prio|queue|handler|length of the key|key, body
--   due                          zset    ms -> job|kind|prio|queue|handler|key, kind J for a job, L for a lane that its
--                                head holds; job in 16 digits, so that the older is first among what is due at once
--   pending                      hash    queue|handler -> unfinished jobs
--   workers                      zset    worker -> when its lease ends (ms)
--   born                         hash    worker -> its first beat (ms)
--   stopping                     set     workers that have said so: what they leave behind was not lost
--   serves                       hash    worker -> queue|handler, of all that it takes work for, separated by spaces
--   held:worker                  hash    job -> ticket|place in that take|prio|queue|handler|key
--   steps:job                    hash    step -> what it gave, so that a repeated attempt does not do it again
--   dead, letters                zset    job -> when it died (ms); hash job -> reason|prio|queue|handler|key

local P = KEYS[1]
local call = redis.call

local function now_ms()
  local t = call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

-- A look at a log that nobody has written to leaves no trace for long: whoever asks for names that are no logs must not
-- fill the server with them. The first append makes it stay.
local function look_at(meta, offered)
  call('HSETNX', meta, 'e', offered)
  local top = call('HMGET', meta, 'e', 's', 'k', 'x', 'c')
  if not top[2] and not top[5] then call('PEXPIRE', meta, 86400000) end
  return { epoch = top[1], seq = tonumber(top[2] or 0), token = top[3] or '0', ttl = tonumber(top[4] or 0), closed = top[5] }
end

local paused = {}
for _, name in ipairs(call('SMEMBERS', P .. 'paused')) do paused[name] = true end

-- The bindings have changed. A time, not a count: after a loss of data no version comes a second time, so no publisher's
-- cache can pass for new.
local function new_version()
  local version = math.max(tonumber(call('HGET', P .. 'meta', 'v') or 0) + 1, now_ms())
  call('HSET', P .. 'meta', 'v', string.format('%d', version))
  return version
end

-- Wake-ups are gathered and rung once per script: a take that serves many jobs needs one.
local rung = {}
local function ring(name) rung[name] = true end
local function ring_all()
  for name in pairs(rung) do
    local key = P .. 'wake:' .. name
    if call('EXISTS', key) == 0 then call('RPUSH', key, '1') end
  end
end

-- Mostly no lease was lost under any job there is, and one look tells it.
local any_lost
local function is_any_lost()
  if any_lost == nil then any_lost = call('EXISTS', P .. 'lost') == 1 end
  return any_lost
end

-- One job that kills its workers must not take along, time after time, what happened to be beside it. A second lost lease
-- makes it a suspect, of which a worker has a few at a time, fewer at each further loss, and at last one alone; not the first,
-- or all that a killed worker held would be made to wait. Answers with how many leases were lost, so far as that matters, or
-- nothing.
local SUSPECT, MOST_SUSPECT = 2, 4
local function suspicion(job)
  local lost = is_any_lost() and tonumber(call('HGET', P .. 'lost', job) or 0) or 0
  return lost >= SUSPECT and math.min(lost, MOST_SUSPECT)
end

-- A job can be taken: by itself, or as the head of its lane.
local function make_ready(prio, queue, handler, key, job, first)
  local name = queue .. '|' .. handler
  call(first and 'LPUSH' or 'RPUSH', P .. 'ready:' .. name .. '|' .. prio, job .. '|' .. key)
  ring(name)
end

-- The same, of a job that may be a suspect.
local function offer(prio, queue, handler, key, job, first)
  local lost = suspicion(job)
  if not lost then return make_ready(prio, queue, handler, key, job, first) end
  local name = queue .. '|' .. handler
  call(first and 'LPUSH' or 'RPUSH', P .. 'suspects:' .. name .. '|' .. lost, prio .. '|' .. job .. '|' .. key)
  call('HSETNX', P .. 'suspects', name, 's')
  ring(name)
end

-- A job joins the tail of its lane. Answers whether it is its head there, or needs no lane.
local function enter_lane(queue, handler, key, job)
  return key == '' or call('RPUSH', P .. 'lane:' .. queue .. '|' .. handler .. '|' .. key, job) == 1
end

local function delay(due, kind, prio, queue, handler, job, key)
  local member = string.format('%016d', tonumber(job)) .. '|' .. kind .. '|' .. prio .. '|' .. queue .. '|' .. handler
  call('ZADD', P .. 'due', due, member .. '|' .. key)
  ring('$due')
end

local function unpack_due(member)
  local job, kind, prio, queue, handler, key = string.match(member, '^0*(%d+)|(%a)|(%d)|([^|]*)|([^|]*)|(.*)$')
  return kind, job, prio, queue, handler, key
end

-- The head leaves its lane for good; the next one is ready.
local function leave_lane(prio, queue, handler, key)
  if key == '' then return end
  local lane = P .. 'lane:' .. queue .. '|' .. handler .. '|' .. key
  call('LPOP', lane)
  local next_job = call('LINDEX', lane, 0)
  if next_job then offer(prio, queue, handler, key, next_job) end
end

-- What was in flight is available again, before everything else of its route.
local function put_back(prio, queue, handler, key, job)
  offer(prio, queue, handler, key, job, true)
end

local function unpack_suspect(entry)
  local prio, job, key = string.match(entry, '^(%d)|(%d+)|(.*)$')
  return prio, job, key
end

local function unpack_ready(entry)
  return string.match(entry, '^(%d+)|(.*)$')
end

local function any_ready(name)
  local ready = P .. 'ready:' .. name
  return call('EXISTS', ready .. '|0', ready .. '|1', ready .. '|2') > 0
end

local function unpack_apart(entry)
  local name, queue, works, since, patience = string.match(entry, '^(([^|]*)|[^|]*)|(%+?)|(%d+)|(%d+)$')
  return name, queue, works == '+', tonumber(since), tonumber(patience)
end

-- Who takes nothing any more does not make room either: another worker may.
local function make_no_room(worker)
  local entry = call('HGET', P .. 'apart', worker)
  if entry and not select(3, unpack_apart(entry)) then call('HDEL', P .. 'apart', worker) end
end

-- Whoever was set apart and holds nothing any more is so no longer.
local function rejoin(worker)
  if call('EXISTS', P .. 'apart') == 1 and call('EXISTS', P .. 'held:' .. worker) == 0 then
    call('HDEL', P .. 'apart', worker)
  end
end

local function unpack_held(record)
  local ticket, _, prio, queue, handler, key = string.match(record, '^(%d+)|(%d+)|(%d)|([^|]*)|([^|]*)|(.*)$')
  return tonumber(ticket), prio, queue, handler, key
end

-- Jobs of a worker's books, what was taken last first: each put back to the head in turn, they stand as they stood.
-- A large hash has no order of its own.
local function last_taken_first(jobs, record_of)
  local order = {}
  for _, job in ipairs(jobs) do
    local ticket, place = string.match(record_of[job], '^(%d+)|(%d+)|')
    order[job] = { tonumber(ticket), tonumber(place) }
  end
  table.sort(jobs, function(a, b)
    local x, y = order[a], order[b]
    if x[1] ~= y[1] then return x[1] > y[1] end
    return x[2] > y[2]
  end)
end

local function bury(job, reason, prio, queue, handler, key, now)
  call('HSET', P .. 'letters', job, reason .. '|' .. prio .. '|' .. queue .. '|' .. handler .. '|' .. key)
  -- Those that die within one millisecond keep their order by a fraction of it.
  local last = tonumber(call('ZRANGE', P .. 'dead', -1, -1, 'WITHSCORES')[2] or 0)
  call('ZADD', P .. 'dead', math.max(now, last + 1 / 1024), job)
  call('HINCRBY', P .. 'pending', queue .. '|' .. handler, -1)
  leave_lane(prio, queue, handler, key)
end

-- Lua's unpack overflows its stack at some thousands of values.
local function hset_all(hash, pairs_of_it)
  for first = 1, #pairs_of_it, 1000 do
    call('HSET', hash, unpack(pairs_of_it, first, math.min(first + 999, #pairs_of_it)))
  end
end

-- Where the body and the notes of these jobs stand, in turns.
local function places_of(jobs)
  local places = {}
  for i, job in ipairs(jobs) do
    places[2 * i - 1], places[2 * i] = job, job .. 'n'
  end
  return places
end

local function hdel_all(hash, fields)
  for first = 1, #fields, 1000 do
    call('HDEL', hash, unpack(fields, first, math.min(first + 999, #fields)))
  end
end

local function forget(jobs)
  hdel_all(P .. 'jobs', places_of(jobs))
  if is_any_lost() then hdel_all(P .. 'lost', jobs) end
  -- A worker that has lost its lease and does not know may ask a little longer.
  for _, job in ipairs(jobs) do call('PEXPIRE', P .. 'steps:' .. job, 3600000) end
end
