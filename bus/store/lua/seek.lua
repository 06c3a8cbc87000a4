#!lua flags=allow-oom
-- Where in a log a time is. Creates the epoch if there is none, as a read does.
--
-- KEYS  1 prefix
-- ARGV  1 log, 2 offered epoch, 3 time (ms)
-- Answer {epoch, seq, token}: the position after which come the entries of that time or later
--
-- Entries have no hole between the first kept and the top, so half of the way between two of them is an entry. What is
-- past its age is not kept, whether or not it is there still.

local meta, stream = P .. 'top:' .. ARGV[1], P .. 'log:' .. ARGV[1]
local top = look_at(meta, ARGV[2])
local epoch, seq, token = top.epoch, top.seq, top.token
local at = math.max(tonumber(ARGV[3]), now_ms() - top.ttl)

local function entry(n) return call('XRANGE', stream, string.format('%d-0', n), '+', 'COUNT', 1)[1] end
local function is_before(found) return tonumber(found[2][2]) < at end

local first = entry(0)
if not first then return { epoch, seq, token } end
local low, high = tonumber(string.match(first[1], '^%d+')), seq + 1
if not is_before(first) then return { epoch, low - 1, first[2][6] } end

-- The entry of low is before the time; that of high is not, or is none.
local found = first
while high - low > 1 do
  local middle = math.floor((low + high) / 2)
  local there = entry(middle)
  if there and is_before(there) then low, found = middle, there else high = middle end
end
return { epoch, low, found[2][4] }
