-- Take one process's counts, once: a batch whose answer was lost is sent again under the same number.
--
--   gt:metrics                 hash: series (JSON: name, label values...) -> count
--   gt:metrics:recent:<n>      the same for the n-th five seconds since the epoch; kept for two minutes
--   gt:metrics:seq:<source>    number of the last batch taken from a process
--
-- ARGV: source, number of the batch, then series and increment in turn. Returns 0 for a batch known already.

local seen = 'gt:metrics:seq:' .. ARGV[1]
if tonumber(redis.call('GET', seen) or '0') >= tonumber(ARGV[2]) then return 0 end
redis.call('SET', seen, ARGV[2], 'EX', 86400)
local recent = 'gt:metrics:recent:' .. math.floor(redis.call('TIME')[1] / 5)
for i = 3, #ARGV, 2 do
  redis.call('HINCRBY', 'gt:metrics', ARGV[i], ARGV[i + 1])
  redis.call('HINCRBY', recent, ARGV[i], ARGV[i + 1])
end
redis.call('EXPIRE', recent, 120)
return 1
