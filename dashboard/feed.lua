-- Note what happened to breakers, once, whoever looks and however many do.
--
--   gt:dashboard:breakers   hash: place -> the opening that was told last
--   gt:dashboard:told       list of JSON, newest first: at (seconds), place, opening (0: closed)
--
-- ARGV: place and opening of each breaker that is not closed, in turn. Returns the list.

local KNOWN, TOLD, MOST = 'gt:dashboard:breakers', 'gt:dashboard:told', 30

local function tell(place, opening)
  local at = redis.call('TIME')[1]
  redis.call('LPUSH', TOLD, cjson.encode({at = tonumber(at), place = place, opening = opening}))
  redis.call('LTRIM', TOLD, 0, MOST - 1)
end

local now = {}
for i = 1, #ARGV, 2 do
  local place, opening = ARGV[i], tonumber(ARGV[i + 1])
  now[place] = true
  if tonumber(redis.call('HGET', KNOWN, place) or '0') < opening then
    tell(place, opening)
    redis.call('HSET', KNOWN, place, opening)
  end
end
for _, place in ipairs(redis.call('HKEYS', KNOWN)) do
  if not now[place] then
    redis.call('HDEL', KNOWN, place)
    tell(place, 0)
  end
end
return redis.call('LRANGE', TOLD, 0, -1)
