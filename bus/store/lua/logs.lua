#!lua flags=allow-oom,no-writes
-- All logs: the open ones that were written to, and the closed ones whose end is remembered.
--
-- KEYS  1 prefix
-- Answer {name, ...}, some perhaps twice

local names = call('SMEMBERS', P .. 'logs')
for _, name in ipairs(call('ZRANGEBYSCORE', P .. 'ended', now_ms(), '+inf')) do names[#names + 1] = name end
return names
