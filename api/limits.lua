-- What a key may use: requests and tokens in any 60 seconds, requests at once, tokens for a day and a month.
-- One script, so that a request is weighed and counted in one atomic step, however many processes ask.
--
-- Keys
--   gt:limits:window:<key>          hash: requests and tokens of the last 61 seconds, one bucket for each
--                                   ("r<second mod 61>", "t<...>"), their sums ("r", "t"), the second it was
--                                   brought up to ("at"), the last seconds charged ("lr", "lt")
--   gt:limits:open:<key>            hash: permit -> "<web process> <tokens reserved> <second>"; callers wait
--   gt:limits:deferred:<key>        hash: permit -> "<given up at, s> <tokens reserved> <second>"; nobody waits
--   gt:limits:reserved:<key>        tokens reserved by both
--   gt:limits:spent:<key>:<period>  tokens used in a day or a month; the ledger knows better after a loss
--
-- A window of whole buckets, summed as they come and go: whatever falls into a bucket counts until all of it
-- is older than 60 s. So no 60 s ever see more than the limit, which a token bucket (GCRA) or two weighted
-- windows do not promise; it costs 61 numbers, not one for each request as a log would.
-- An open permit names its web process: it is void once that process is gone, so a kill leaks nothing.

local WINDOW, OPEN, DEFERRED = 'gt:limits:window:', 'gt:limits:open:', 'gt:limits:deferred:'
local RESERVED, SPENT = 'gt:limits:reserved:', 'gt:limits:spent:'
local BUCKETS = 61
local WEEK = 7 * 86400

local function clock()
  local t = redis.call('TIME')
  return tonumber(t[1]), t[1] * 1000 + math.floor(t[2] / 1000)
end

local function number(key, field)
  return tonumber(redis.call('HGET', key, field) or '0')
end

-- Let go of the buckets that are older than the window. Returns the second it now stands at.
local function advance(key, second)
  local w = WINDOW .. key
  local at = number(w, 'at')
  if math.abs(second - at) >= BUCKETS then
    redis.call('DEL', w)
    redis.call('HSET', w, 'at', second)
    return second
  end
  if second <= at then return at end  -- the clock was set back a little
  local r, t = 0, 0
  for s = at + 1, second do
    local b = s % BUCKETS
    local old = redis.call('HMGET', w, 'r' .. b, 't' .. b)
    if old[1] or old[2] then
      r, t = r + tonumber(old[1] or '0'), t + tonumber(old[2] or '0')
      redis.call('HDEL', w, 'r' .. b, 't' .. b)
    end
  end
  if r ~= 0 then redis.call('HINCRBY', w, 'r', -r) end
  if t ~= 0 then redis.call('HINCRBY', w, 't', -t) end
  redis.call('HSET', w, 'at', second)
  return second
end

local function charge(key, at, second, requests, tokens)
  local w, b = WINDOW .. key, second % BUCKETS
  if requests ~= 0 then
    redis.call('HINCRBY', w, 'r', requests)
    redis.call('HINCRBY', w, 'r' .. b, requests)
    if requests > 0 then redis.call('HSET', w, 'lr', second) end
  end
  if tokens ~= 0 then
    redis.call('HINCRBY', w, 't', tokens)
    redis.call('HINCRBY', w, 't' .. b, tokens)
    if tokens > 0 then redis.call('HSET', w, 'lt', second) end
  end
  redis.call('EXPIRE', w, BUCKETS + 1)
end

-- Milliseconds until `excess` of what is counted has left the window
local function until_free(key, kind, at, excess, now_ms)
  for s = at - BUCKETS + 1, at do
    excess = excess - number(WINDOW .. key, kind .. (s % BUCKETS))
    if excess <= 0 then return math.max(1, (s + BUCKETS) * 1000 - now_ms) end
  end
  return BUCKETS * 1000
end

local function release(key, hash, permit, reserved)
  redis.call('HDEL', hash, permit)
  local left = redis.call('DECRBY', RESERVED .. key, reserved)
  if left <= 0 or (redis.call('EXISTS', OPEN .. key) == 0 and redis.call('EXISTS', DEFERRED .. key) == 0) then
    redis.call('DEL', RESERVED .. key)
  end
end

-- Void what nobody will give back. At most once a second for each key, since it looks at every permit.
local function purge(key, at)
  local w = WINDOW .. key
  if number(w, 'purged') == at then return end
  redis.call('HSET', w, 'purged', at)
  local lives = {}
  local open = redis.call('HGETALL', OPEN .. key)
  for i = 1, #open, 2 do
    local web, reserved = string.match(open[i + 1], '^(%S*) (%d+) ')
    if lives[web] == nil then lives[web] = redis.call('EXISTS', 'gt:web:' .. web) == 1 end
    if not lives[web] then release(key, OPEN .. key, open[i], reserved) end
  end
  local deferred = redis.call('HGETALL', DEFERRED .. key)
  for i = 1, #deferred, 2 do
    local give_up, reserved = string.match(deferred[i + 1], '^(%d+) (%d+) ')
    if tonumber(give_up) < at then release(key, DEFERRED .. key, deferred[i], reserved) end
  end
end

-- What was spent in a period: Redis's figure, or the ledger's where that is larger (Redis was emptied).
local function spent(key, period, ledger)
  local name = SPENT .. key .. ':' .. period
  local value = tonumber(redis.call('GET', name) or '0')
  if ledger > value then
    redis.call('SET', name, ledger, 'EX', 32 * 86400)
    value = ledger
  end
  return value
end

local verbs = {}

-- key permit web defer_s tokens concurrency rpm tpm per_day per_month day month day_ledger month_ledger
-- `web` is empty for work that nobody waits for: it has no part in `concurrency`. Limits of 0 are none.
-- Returns verdict, requests left, tokens left, and ms: until these are whole again, until a retry makes sense
function verbs.admit(a)
  local key, permit, web, defer_s, tokens = a[1], a[2], a[3], tonumber(a[4]), tonumber(a[5])
  local concurrency, rpm, tpm = tonumber(a[6]), tonumber(a[7]), tonumber(a[8])
  local per_day, per_month = tonumber(a[9]), tonumber(a[10])
  local second, now_ms = clock()
  local at = advance(key, second)
  local w, hash = WINDOW .. key, web ~= '' and OPEN .. key or DEFERRED .. key
  local r, t = number(w, 'r'), number(w, 't')
  local verdict, retry = 'ok', 0

  if redis.call('HEXISTS', hash, permit) == 0 then  -- else asked again after an answer was lost
    if rpm > 0 and r + 1 > rpm then
      verdict, retry = 'requests', until_free(key, 'r', at, r + 1 - rpm, now_ms)
    elseif tpm > 0 and t + tokens > tpm then
      verdict, retry = 'tokens', until_free(key, 't', at, t + tokens - tpm, now_ms)
    end
    if verdict == 'ok' and concurrency > 0 and web ~= '' and redis.call('HLEN', hash) >= concurrency then
      purge(key, at)
      if redis.call('HLEN', hash) >= concurrency then verdict, retry = 'concurrency', 1000 end
    end
    local function over(name, limit, period, ledger)
      if verdict ~= 'ok' or limit == 0 then return end
      local used = spent(key, period, ledger)
      local function full() return used + tokens + tonumber(redis.call('GET', RESERVED .. key) or '0') > limit end
      if not full() then return end
      purge(key, at)
      if full() then
        verdict = name
        if used + tokens <= limit then retry = 1000 end  -- what is under way may take less than it reserved
      end
    end
    over('day', per_day, a[11], tonumber(a[13]))
    over('month', per_month, a[12], tonumber(a[14]))
    if verdict == 'ok' then
      charge(key, at, at, 1, tokens)
      r, t = r + 1, t + tokens
      redis.call('HSET', hash, permit, (web ~= '' and web or (second + defer_s)) .. ' ' .. tokens .. ' ' .. at)
      redis.call('INCRBY', RESERVED .. key, tokens)
      for _, name in ipairs({hash, RESERVED .. key}) do redis.call('EXPIRE', name, math.max(WEEK, 2 * defer_s)) end
    end
  end

  redis.call('EXPIRE', w, BUCKETS + 1)
  local function reset(field)
    local last = redis.call('HGET', w, field)
    return last and math.max(0, (last + BUCKETS) * 1000 - now_ms) or 0
  end
  return {verdict, rpm - r, tpm - t, r > 0 and reset('lr') or 0, t > 0 and reset('lt') or 0, retry}
end

-- key permit waits tokens served day month: the work is over and took so many tokens. Not served: the request
-- is given back, too. Returns whether the permit was open; a second time nothing changes.
function verbs.settle(a)
  local key, permit, hash = a[1], a[2], (a[3] == '1' and OPEN or DEFERRED) .. a[1]
  local tokens, served = tonumber(a[4]), a[5] == '1'
  local entry = redis.call('HGET', hash, permit)
  if not entry then return 0 end
  local reserved, since = string.match(entry, ' (%d+) (%d+)$')
  reserved, since = tonumber(reserved), tonumber(since)
  release(key, hash, permit, reserved)
  local second = clock()
  local at = advance(key, second)
  if at - since < BUCKETS and since <= at then
    charge(key, at, since, served and 0 or -1, tokens - reserved)
  elseif tokens > reserved then
    charge(key, at, at, 0, tokens - reserved)
  end
  if tokens > 0 then
    for i = 6, 7 do
      local name = SPENT .. key .. ':' .. a[i]
      redis.call('INCRBY', name, tokens)
      redis.call('EXPIRE', name, 32 * 86400)
    end
  end
  return 1
end

local verb = table.remove(ARGV, 1)
return verbs[verb](ARGV)
