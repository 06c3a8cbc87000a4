#!lua
-- Keep what a step of a job gave, for as long as the job is kept. The first one to say counts.
--
-- KEYS  1 prefix
-- ARGV  1 job, 2 step, 3 value, 4 how long from now, ms, where the job is kept no more
-- Answer the value that is kept

local steps = P .. 'steps:' .. ARGV[1]
call('HSETNX', steps, ARGV[2], ARGV[3])
if call('HEXISTS', P .. 'jobs', ARGV[1]) == 0 then call('PEXPIRE', steps, ARGV[4]) end
return call('HGET', steps, ARGV[2])
