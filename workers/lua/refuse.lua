-- An endpoint (or a model there) turned a call away for a reason that is not the call's own.
-- KEYS 1 answers of its prompt  2 the door that is shut
--      3 leases of the endpoint 4 leases of the generator or judge
-- ARGV 1 address  2 lease  3 when it began  4 reason  5 detail  6 seconds asked for, or empty
--      7 first wait  8 longest wait  9 seconds that a door is remembered
--      10 when this very call was refused before, or empty  11 which key it was asked with
--      12 how often it was refused since others were let through  13 how often they were before
--      14 how often is enough  15 refusals that are enough while nobody else is refused
-- Only what was let through with the same key says that a call has itself to blame.
-- Returns {what became of the door: shut | kept, or open: this call alone is suspected,
--          1 if a later call was let through since it was refused before,
--          1 if the call has itself to blame, now}
redis.call('ZREM', KEYS[3], ARGV[2])
redis.call('ZREM', KEYS[4], ARGV[2])
redis.call('HDEL', KEYS[1], '@' .. ARGV[1])
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000
local door = redis.call('HMGET', KEYS[2], 'strikes', 'struck', 'until', 'let_in:' .. ARGV[11])
local fresh = not door[1]
local passed = ARGV[10] ~= '' and tonumber(door[4] or '0') > tonumber(ARGV[10])
local blame = (tonumber(ARGV[13]) + (passed and 1 or 0)) / tonumber(ARGV[14])
-- What others are let through for may be this call's own; were it the endpoint's after all, the
-- next call that is refused shuts it. A limit on the rate is nobody's own.
if fresh and passed and ARGV[4] ~= 'rate_limited' then
    return {'open', 1, blame >= 1 and 1 or 0, string.format('%.6f', now)}
end
local strikes = tonumber(door[1] or '0')
-- Calls that began before the last strike belong to it: one wave is one strike.
if fresh or tonumber(ARGV[3]) >= tonumber(door[2]) then
    strikes = strikes + 1
    redis.call('HSET', KEYS[2], 'strikes', strikes, 'struck', string.format('%.6f', now))
end
local wait = math.min(tonumber(ARGV[7]) * 2 ^ (strikes - 1), tonumber(ARGV[8]))
if ARGV[6] ~= '' then wait = math.min(tonumber(ARGV[6]), tonumber(ARGV[8])) end
local reopens = math.max(tonumber(door[3] or '0'), now + wait)
redis.call('HSET', KEYS[2], 'until', string.format('%.6f', reopens), 'reason', ARGV[4], 'detail', ARGV[5])
if fresh then redis.call('HSET', KEYS[2], 'since', clock[1]) end

-- Who is half to blame already says nothing against the endpoint: two such calls, which nobody
-- passes any more because all others are done, would keep each other waiting for ever.
local mine, others = 'refused:' .. ARGV[1], 0
local fields = redis.call('HGETALL', KEYS[2])
for n = 1, #fields, 2 do
    local name, at = fields[n], tonumber(fields[n + 1])
    if string.sub(name, 1, 8) == 'refused:' and name ~= mine then
        -- One that has not come back for long ended otherwise.
        if at > now - 20 * tonumber(ARGV[8]) then others = others + 1
        else redis.call('HDEL', KEYS[2], name) end
    end
end
local suspected = blame >= 0.5
if others == 0 then blame = blame + (passed and 1 or tonumber(ARGV[12]) + 1) / tonumber(ARGV[15]) end
if suspected or blame >= 1 then
    redis.call('HDEL', KEYS[2], mine)
elseif others < 8 then
    redis.call('HSET', KEYS[2], mine, string.format('%.6f', now))
end
redis.call('EXPIRE', KEYS[2], ARGV[9])
return {fresh and 'shut' or 'kept', passed and 1 or 0, blame >= 1 and 1 or 0, string.format('%.6f', now)}
