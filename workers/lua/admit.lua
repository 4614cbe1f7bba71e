-- May a call be made now? Either it was answered already, or it gets a lease, or it waits.
-- KEYS 1 answers of its prompt  2 pause of its run  3 door of the endpoint  4 door of the model there
--      5 leases of the endpoint 6 leases of the generator or judge  7 processes waiting for the latter
-- ARGV 1 address  2 lease  3 process  4 lease in seconds  5 room at the endpoint  6 room for the latter
--      7 seconds that answers are kept
-- Returns {what[, more]}: done | answered, answer | busy | paused | closed, seconds | full | go, now
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000
local function lives(lease)
    local ends = lease and redis.call('ZSCORE', KEYS[5], lease)
    return ends and tonumber(ends) > now
end

local found = redis.call('HMGET', KEYS[1], 'done', ARGV[1], '@' .. ARGV[1])
if found[1] then return {'done'} end
if found[2] then return {'answered', found[2]} end
-- Its own lease means that this is the same question, asked again after a lost reply.
if found[3] ~= ARGV[2] and lives(found[3]) then return {'busy'} end
if redis.call('EXISTS', KEYS[2]) == 1 then return {'paused'} end

local probed = {}
for number = 3, 4 do
    local door = redis.call('HMGET', KEYS[number], 'strikes', 'until', 'probe')
    if door[1] then
        local wait = tonumber(door[2]) - now
        if wait > 0 then return {'closed', string.format('%.3f', wait)} end
        -- Half open: one call tries, all others wait for what becomes of it.
        if lives(door[3]) then return {'closed', '0.2'} end
        probed[#probed + 1] = KEYS[number]
    end
end

redis.call('ZREMRANGEBYSCORE', KEYS[5], '-inf', now)
redis.call('ZREMRANGEBYSCORE', KEYS[6], '-inf', now)
redis.call('ZREMRANGEBYSCORE', KEYS[7], '-inf', now - 2)
local function full()
    redis.call('ZADD', KEYS[7], now, ARGV[3])
    redis.call('EXPIRE', KEYS[7], 10)
    return {'full'}
end
local room = tonumber(ARGV[6])
if redis.call('ZCARD', KEYS[5]) >= tonumber(ARGV[5]) then return full() end
if redis.call('ZCARD', KEYS[6]) >= room then return full() end

-- Where other processes wait, each has its share and no more.
local others = redis.call('ZCARD', KEYS[7])
if redis.call('ZSCORE', KEYS[7], ARGV[3]) then others = others - 1 end
if others > 0 then
    local mine, processes, count = 0, {[ARGV[3]] = true}, 1
    local function seen(process)
        if not processes[process] then
            processes[process] = true
            count = count + 1
        end
    end
    for _, lease in ipairs(redis.call('ZRANGE', KEYS[6], 0, -1)) do
        local process = string.match(lease, '^[^:]*')
        if process == ARGV[3] then mine = mine + 1 end
        seen(process)
    end
    for _, process in ipairs(redis.call('ZRANGE', KEYS[7], 0, -1)) do seen(process) end
    if mine >= math.ceil(room / count) then return full() end
end

local ends = now + tonumber(ARGV[4])
for number = 5, 6 do
    redis.call('ZADD', KEYS[number], ends, ARGV[2])
    redis.call('EXPIRE', KEYS[number], 3600)
end
redis.call('ZREM', KEYS[7], ARGV[3])
redis.call('HSET', KEYS[1], '@' .. ARGV[1], ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[7])
for _, door in ipairs(probed) do redis.call('HSET', door, 'probe', ARGV[2]) end
return {'go', string.format('%.6f', now)}
