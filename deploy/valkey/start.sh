#!/bin/sh
# Starts Valkey with the access list of a fleet; passwords come from the environment and are
# written as digests only. Arguments go to the server.
#
#   producer   enqueue, pause, resume, failures; publishes, and reads no queue
#   worker     works on the queues
#   beat       publishes to `sink` and `deliver`, and looks how deep the queues are
#   reader     looks, changes nothing: metrics, health checks
#   flower     looks how deep the queues are, and listens for Celery's events
#
# Scripts (workers/lua, kombu's and Celery's) run with the rights of whoever calls them.
set -eu
umask 077
folder=${PREFMILL_ACL_FOLDER:-/run/valkey}

user() { # name, password, rules
  if [ -z "$2" ]; then
    echo "start-valkey: no password for the user $1" >&2
    exit 2
  fi
  digest=$(printf %s "$2" | sha256sum | cut -d ' ' -f 1)
  echo "user $1 on #$digest resetchannels -@all $connection $3"
}

# +client is what a connection may say of itself, without what concerns others.
connection='+client -@dangerous +auth +hello +ping +select +multi +exec +discard'
queues='*.v[0-9]*'
# In parentheses: commands with the keys that they are for. Bindings are kombu's; signs are what a
# process says of itself.
bindings='(%W~_kombu.binding.* %W~_kombu.binding_permanent.* +sadd)'
signs='(~prefmill:*:workers:* +hset +pexpire +hgetall +del)'
looks='(%R~prefmill:door:* %R~prefmill:*:workers:* +hgetall) +scan'

{
  # Nobody can be this user, but the append-only file is read back with its rights: without them
  # Redis 7.0 leaves out every transaction in it.
  echo 'user default off resetpass ~* &* +@all'
  user producer "${PREFMILL_PRODUCER_PASSWORD-}" "$bindings $signs $looks \
(%W~$queues +lpush +llen) (~celery-taskset-meta-* +set +del +unlink) (%R~prefmill:*:aside +lrange +llen) \
(~prefmill:door:* ~prefmill:*:paused %W~prefmill:*:answers:* +set +unlink +del +hdel)"
  user worker "${PREFMILL_WORKER_PASSWORD-}" "\
~$queues ~unacked ~unacked_index ~unacked_mutex ~_kombu.binding.* ~_kombu.binding_permanent.* \
~celery-task-meta-* ~celery-taskset-meta-* ~prefmill:* \
+brpop +lpush +rpush +llen +lrange +ltrim \
+hget +hgetall +hmget +hset +hdel +hexists +hscan \
+zadd +zrem +zrange +zrevrangebyscore +zrangebyscore +zremrangebyscore +zscore +zcard +zcount \
+sadd +srem +smembers +sismember +get +set +del +unlink +exists +expire +pexpire +pttl +scan +watch \
+unwatch +eval +evalsha +script|load +time"
  user beat "${PREFMILL_BEAT_PASSWORD-}" "$bindings $signs $looks \
(%W~$queues.sink* %W~$queues.deliver* +lpush +llen) (%R~$queues +llen)"
  user reader "${PREFMILL_READER_PASSWORD-}" "$looks \
(%R~$queues %R~prefmill:*:aside +llen) (%R~unacked +hscan) (%R~prefmill:leases:* +zcount) +time"
  user flower "${PREFMILL_FLOWER_PASSWORD-}" "%R~$queues +llen \
~celeryev.* ~*.reply.celery.pidbox* ~_kombu.binding*.celeryev ~_kombu.binding_deadlines \
~_kombu.binding*.reply.celery.pidbox \
+sadd +srem +smembers +exists +del +eval +evalsha +script|load +script|exists +pexpire +expire +brpop +time +zadd +zrem +zscore +zrangebyscore \
&/0.celeryev/* &/0.celery.pidbox +publish +subscribe +psubscribe +unsubscribe +punsubscribe"
} >"$folder/users.acl"

unset PREFMILL_PRODUCER_PASSWORD PREFMILL_WORKER_PASSWORD PREFMILL_BEAT_PASSWORD \
  PREFMILL_READER_PASSWORD PREFMILL_FLOWER_PASSWORD
exec valkey-server --aclfile "$folder/users.acl" "$@"
