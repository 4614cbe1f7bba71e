-- A call came to its end: its lease is given back, its answer (if any) kept, its doors opened.
-- KEYS 1 answers of its prompt  2 door of the endpoint  3 door of the model there
--      4 leases of the endpoint 5 leases of the generator or judge
-- ARGV 1 address  2 lease  3 answer, or empty  4 when it began  5 seconds that answers are kept
--      6 seconds that a door is remembered  7 which key it was asked with
-- Returns 1 if this answer opened a door, else 0.
redis.call('ZREM', KEYS[4], ARGV[2])
redis.call('ZREM', KEYS[5], ARGV[2])
if redis.call('HGET', KEYS[1], '@' .. ARGV[1]) == ARGV[2] then
    redis.call('HDEL', KEYS[1], '@' .. ARGV[1])
end
if ARGV[3] == '' then return 0 end
-- A committed prompt needs no answers any more.
if redis.call('HEXISTS', KEYS[1], 'done') == 0 then
    redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
    redis.call('EXPIRE', KEYS[1], ARGV[5])
end
local opened = 0
for number = 2, 3 do
    local let_in = 'let_in:' .. ARGV[7]
    local door = redis.call('HMGET', KEYS[number], 'struck', let_in)
    if door[1] and tonumber(ARGV[4]) >= tonumber(door[1]) then
        redis.call('DEL', KEYS[number])
        opened = 1
    end
    if tonumber(ARGV[4]) >= tonumber(door[2] or '0') then
        redis.call('HSET', KEYS[number], let_in, ARGV[4])
    end
    redis.call('EXPIRE', KEYS[number], ARGV[6])
end
return opened
