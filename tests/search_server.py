"""An in-memory stand-in for Elasticsearch 8: only what argilla-server 2.8.0 asks of it.

Run as `python -I search_server.py --guard`. It listens on a free port of 127.0.0.1 and prints it as
one line of JSON. Standard library only. It is also the guard of its parent's other processes, so
that nothing outlives a test run that was killed; it reads lines from stdin:

    guard <pid>     at the end of stdin send SIGTERM, then SIGKILL, to that process
    home <path>     at the end of stdin remove that folder
    quit            leave without touching what is guarded

It knows indices with strict mappings, _bulk, _doc, _update (merging, and argilla-server's three
scripts), _delete_by_query, _search with knn, _count and _refresh; of queries match_all, match_none,
bool, term, terms, range, exists, ids, nested, match, simple_query_string and random scores; of
aggregations terms, value_count, stats, min, max, sum, avg and cardinality. All else is answered
with 400: highlighting, scrolling, other scripts, analyzers, scores as BM25 has them.
"""

import argparse
import contextlib
import fnmatch
import hashlib
import json
import math
import os
import re
import shutil
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

VERSION = "8.7.0"
LOCK = threading.RLock()
INDICES = {}  # name -> Index


class EsError(Exception):
    def __init__(self, status, type_, reason):
        super().__init__(reason)
        self.status, self.type, self.reason = status, type_, reason

    def body(self):
        cause = {"type": self.type, "reason": self.reason}
        return {"error": {"root_cause": [cause], **cause}, "status": self.status}


def norm_props(props, into=None):
    """{"a.b": {...}} -> {"a": {"properties": {"b": {...}}}}; merges into `into`."""
    into = {} if into is None else into
    for name, spec in (props or {}).items():
        head, _, rest = name.partition(".")
        if rest:
            node = into.setdefault(head, {"type": "object", "properties": {}})
            norm_props({rest: spec}, node.setdefault("properties", {}))
        else:
            node = into.setdefault(head, {})
            node.update({k: v for k, v in spec.items() if k != "properties"})
            if "properties" in spec or node.get("type") == "nested":
                norm_props(spec.get("properties"), node.setdefault("properties", {}))
    return into


class Index:
    def __init__(self, name, body):
        self.name = name
        self.settings = body.get("settings") or {}
        mappings = body.get("mappings") or {}
        self.root = {k: v for k, v in mappings.items() if k != "properties"}
        self.root["properties"] = norm_props(mappings.get("properties"))
        self.docs = {}  # id -> {"seq": n, "source": {...}, "version": n}
        self.seq = 0

    def field_type(self, path):
        node = self.root
        for part in path.split("."):
            node = (node.get("properties") or {}).get(part)
            if node is None:
                return None
        return node.get("type", "object")

    def text_leaves(self, pattern):
        out = []

        def walk(node, path):
            for name, sub in (node.get("properties") or {}).items():
                p = f"{path}.{name}" if path else name
                if sub.get("properties"):
                    walk(sub, p)
                elif sub.get("type") in ("text", "keyword") and fnmatch.fnmatchcase(p, pattern):
                    out.append(p)

        walk(self.root, "")
        return out

    def put(self, id_, source, create=False):
        if create and id_ in self.docs:
            raise EsError(409, "version_conflict_engine_exception", f"[{id_}]: version conflict")
        self.check(source, self.root, "", self.root.get("dynamic", True))
        for pattern in (self.root.get("_source") or {}).get("excludes") or []:
            node, parts = source, pattern.split(".")
            for part in parts[:-1]:
                node = node.get(part) if isinstance(node, dict) else None
            if isinstance(node, dict):
                node.pop(parts[-1], None)
        old = self.docs.get(id_)
        doc = {"seq": self.seq, "source": source, "version": (old["version"] + 1) if old else 1}
        self.seq += 1
        self.docs[id_] = doc
        return doc, "updated" if old else "created"

    def check(self, value, node, path, dynamic):
        if value is None:
            return
        if isinstance(value, list) and node.get("type") != "dense_vector":
            for item in value:
                self.check(item, node, path, dynamic)
            return
        type_ = node.get("type", "object")
        if type_ in ("object", "nested"):
            if node.get("enabled") is False:
                return
            if not isinstance(value, dict):
                raise EsError(
                    400,
                    "mapper_parsing_exception",
                    f"object mapping for [{path}] tried to parse as object, "
                    "but found a concrete value",
                )
            dynamic = node.get("dynamic", dynamic)
            props = node.get("properties") or {}
            for key, sub in value.items():
                p = f"{path}.{key}" if path else key
                target, rest = props.get(key), None
                if target is None and "." in key:  # dotted key: walk down
                    head, _, rest = key.partition(".")
                    target = props.get(head)
                if target is None:
                    if dynamic == "strict":
                        raise EsError(
                            400,
                            "strict_dynamic_mapping_exception",
                            f"mapping set to strict, dynamic introduction of [{key}] "
                            f"within [{path or '_doc'}] is not allowed",
                        )
                    continue
                self.check({rest: sub} if rest else sub, target, p, dynamic)
        elif isinstance(value, dict):
            raise EsError(
                400,
                "mapper_parsing_exception",
                f"failed to parse field [{path}] of type [{type_}]: found an object",
            )
        elif type_ in ("integer", "long", "float", "double", "short"):
            try:
                float(value)
            except (TypeError, ValueError):
                raise EsError(
                    400,
                    "mapper_parsing_exception",
                    f"failed to parse field [{path}] of type [{type_}]: {value!r}",
                ) from None
        elif type_ == "dense_vector" and len(value) != node.get("dims"):
            raise EsError(
                400,
                "mapper_parsing_exception",
                f"dense_vector [{path}] has {len(value)} dims, expected {node.get('dims')}",
            )


def raw_values(source, path):
    """All leaf values at a dotted path, arrays flattened, as with include_in_root."""
    nodes = [source]
    parts = path.split(".")
    i = 0
    while i < len(parts):
        nxt = []
        for node in nodes:
            for item in node if isinstance(node, list) else [node]:
                if isinstance(item, dict):
                    if parts[i] in item:
                        nxt.append(item[parts[i]])
                    else:  # a key that itself holds dots
                        rest = ".".join(parts[i:])
                        if rest in item:
                            return flatten([item[rest]])
        nodes = nxt
        i += 1
    return flatten(nodes)


def flatten(nodes):
    out = []
    for node in nodes:
        if isinstance(node, list):
            out.extend(flatten(node))
        elif node is not None:
            out.append(node)
    return out


def comparable(value):
    if isinstance(value, bool):
        return "true" if value else "false"
    return value


def same(a, b):
    a, b = comparable(a), comparable(b)
    if isinstance(a, (int, float)) or isinstance(b, (int, float)):
        try:
            return float(a) == float(b)
        except (TypeError, ValueError):
            return False
    return a == b


def tokens(value):
    return [t.lower() for t in re.findall(r"\w+", str(value))]


def parse_sqs(text):
    """-> nested ("and"|"or", [...]) / ("not", x) / ("phrase", [tok]) / ("prefix", tok)."""
    lexed = re.findall(r'"[^"]*"(?:~\d+)?|[()|+]|-(?=\S)|[^\s()|+"]+', text)
    pos = 0

    def expr():
        nonlocal pos
        ors, ands = [], []
        while pos < len(lexed) and lexed[pos] != ")":
            tok = lexed[pos]
            if tok == "|":
                pos += 1
                ors.append(("and", ands))
                ands = []
                continue
            if tok == "+":
                pos += 1
                continue
            node = unary()
            if node is not None:
                ands.append(node)
        ors.append(("and", ands))
        return ors[0] if len(ors) == 1 else ("or", [o for o in ors if o[1]])

    def unary():
        nonlocal pos
        tok = lexed[pos]
        pos += 1
        if tok == "-":
            if pos < len(lexed):
                node = unary()
                return ("not", node) if node else None
            return None
        if tok == "(":
            node = expr()
            pos += 1
            return node
        if tok == ")":
            return None
        if tok.startswith('"'):
            toks = tokens(tok)
            return ("phrase", toks) if toks else None
        tok = re.sub(r"~\d*$", "", tok)
        if tok.endswith("*"):
            toks = tokens(tok[:-1])
            return ("prefix", toks[-1]) if toks else None
        toks = tokens(tok)
        return (
            ("phrase", toks)
            if len(toks) == 1
            else ("and", [("phrase", [t]) for t in toks])
            if toks
            else None
        )

    nodes = []
    while pos < len(lexed):
        nodes.append(expr())
        if pos < len(lexed):
            pos += 1  # stray ")"
    return ("and", nodes)


def eval_sqs(node, fields):
    """fields: list of token lists.  Returns a score (0 = no match)."""
    kind, arg = node
    if kind == "and":
        score = 0.0
        for sub in arg:
            s = eval_sqs(sub, fields)
            if s <= 0:
                return 0.0
            score += s
        return score
    if kind == "or":
        return sum(eval_sqs(sub, fields) for sub in arg)
    if kind == "not":
        return 0.0 if eval_sqs(arg, fields) > 0 else 1.0
    if kind == "prefix":
        return float(any(t.startswith(arg) for f in fields for t in f))
    n, best = len(arg), 0.0
    for field in fields:
        hits = sum(1 for i in range(len(field) - n + 1) if field[i : i + n] == arg)
        if hits:
            best = max(best, 1.0 + hits / (hits + 1.2))
    return best


def as_list(value):
    return value if isinstance(value, list) else [value]


def run_query(query, index, id_, source, seq):
    """Score of a document for a query; 0 = no match."""
    if not query:
        return 1.0
    ((kind, arg),) = query.items()
    if kind == "match_all":
        return 1.0
    if kind == "match_none":
        return 0.0
    if kind == "bool":
        score = 0.0
        for sub in as_list(arg.get("must") or []):
            s = run_query(sub, index, id_, source, seq)
            if s <= 0:
                return 0.0
            score += s
        for sub in as_list(arg.get("filter") or []):
            if run_query(sub, index, id_, source, seq) <= 0:
                return 0.0
        for sub in as_list(arg.get("must_not") or []):
            if run_query(sub, index, id_, source, seq) > 0:
                return 0.0
        should = as_list(arg.get("should") or [])
        if should:
            scores = [run_query(sub, index, id_, source, seq) for sub in should]
            need = arg.get("minimum_should_match")
            if need is None:
                need = 0 if arg.get("must") or arg.get("filter") else 1
            if sum(s > 0 for s in scores) < int(need):
                return 0.0
            score += sum(scores)
        return score if score > 0 else 1.0
    if kind in ("term", "terms"):
        arg = {k: v for k, v in arg.items() if k != "boost"}
        ((field, wanted),) = arg.items()
        if kind == "term" and isinstance(wanted, dict):
            wanted = wanted["value"]
        values = raw_values(source, field)
        return float(any(same(v, w) for v in values for w in as_list(wanted)))
    if kind == "match":
        ((field, wanted),) = arg.items()
        wanted = wanted.get("query") if isinstance(wanted, dict) else wanted
        have = {t for v in raw_values(source, field) for t in tokens(v)}
        return float(sum(t in have for t in tokens(wanted)))
    if kind == "range":
        ((field, bounds),) = arg.items()
        ops = {
            "gte": lambda a, b: a >= b,
            "gt": lambda a, b: a > b,
            "lte": lambda a, b: a <= b,
            "lt": lambda a, b: a < b,
        }
        for value in raw_values(source, field):
            if all(range_ok(ops[op], value, bound) for op, bound in bounds.items() if op in ops):
                return 1.0
        return 0.0
    if kind == "exists":
        return float(bool(raw_values(source, arg["field"])))
    if kind == "ids":
        return float(id_ in [str(v) for v in arg["values"]])
    if kind == "nested":
        path = arg["path"]
        for item in raw_values(source, path):
            wrapped = item
            for part in reversed(path.split(".")):
                wrapped = {part: wrapped}
            s = run_query(arg["query"], index, id_, wrapped, seq)
            if s > 0:
                return s
        return 0.0
    if kind == "simple_query_string":
        fields = []
        for pattern in arg.get("fields") or ["*"]:
            for path in index.text_leaves(pattern.split("^")[0]):
                fields.extend(tokens(v) for v in raw_values(source, path))
        return eval_sqs(parse_sqs(arg["query"]), fields)
    if kind == "function_score":
        score = run_query(arg.get("query"), index, id_, source, seq)
        if score <= 0:
            return 0.0
        for fn in arg.get("functions") or []:
            rnd = fn.get("random_score")
            if rnd is None:
                raise EsError(
                    400,
                    "parsing_exception",
                    f"function {list(fn)} not supported by the search server",
                )
            digest = hashlib.sha1(f"{rnd.get('seed')}:{seq}".encode()).digest()
            score *= (int.from_bytes(digest[:6], "big") + 1) / 2**48
        return score
    raise EsError(400, "parsing_exception", f"unknown query [{kind}]")


def range_ok(op, value, bound):
    try:
        return op(float(value), float(bound))
    except (TypeError, ValueError):
        return op(str(value), str(bound).replace("Z", ""))


def matching(index, query):
    out = []
    for id_, doc in index.docs.items():
        score = run_query(query, index, id_, doc["source"], doc["seq"])
        if score > 0:
            out.append((id_, doc, score))
    return out


def knn_hits(index, knn):
    out = []
    target = knn["query_vector"]
    norm = math.sqrt(sum(x * x for x in target)) or 1.0
    for id_, doc, _ in matching(index, knn.get("filter")):
        vec = raw_values(doc["source"], knn["field"])
        if not vec:
            continue
        cos = sum(a * b for a, b in zip(vec, target, strict=False)) / (
            norm * (math.sqrt(sum(x * x for x in vec)) or 1.0)
        )
        out.append((id_, doc, (1 + cos) / 2))
    out.sort(key=lambda h: -h[2])
    return out[: knn["k"]]


def sort_hits(index, hits, sort):
    for clause in reversed(as_list(sort)):
        if isinstance(clause, str):
            field, _, order = clause.partition(":")
            clause = {field: order or "asc"}
        ((field, spec),) = clause.items()
        spec = {"order": spec} if isinstance(spec, str) else spec
        desc = (spec.get("order") or "asc") == "desc"
        keyed = [(sort_key(index, hit, field, spec, desc), hit) for hit in hits]
        have = sorted((k for k in keyed if k[0] is not None), key=lambda k: k[0], reverse=desc)
        hits[:] = [h for _, h in have] + [h for k, h in keyed if k is None]
    return hits


def sort_key(index, hit, field, spec, desc):
    if field == "_score":
        return hit[2]
    source, nested = hit[1]["source"], spec.get("nested")
    if nested and nested.get("filter"):
        keep = [
            i
            for i in raw_values(source, nested["path"])
            if run_query(nested["filter"], index, hit[0], {nested["path"]: i}, 0) > 0
        ]
        source = {nested["path"]: keep}
    values = raw_values(source, field)
    if not values:
        return None
    if all(isinstance(v, (int, float)) for v in values):
        if spec.get("mode") == "avg":
            return sum(values) / len(values)
        return max(values) if desc else min(values)
    values = [str(v) for v in values]
    return max(values) if desc else min(values)


def aggregate(index, hits, aggs):
    out = {}
    for name, spec in (aggs or {}).items():
        ((kind, arg),) = (
            (k, v) for k, v in spec.items() if k not in ("aggs", "aggregations", "meta")
        )
        field = arg["field"]
        per_doc = []
        for _, doc, _ in hits:
            values = raw_values(doc["source"], field)
            if values and not all(
                isinstance(v, (int, float)) and not isinstance(v, bool) for v in values
            ):
                values = sorted(
                    {comparable(v) for v in values}, key=str
                )  # keyword doc values are a set
            per_doc.append(values)
        if kind == "terms":
            counts = {}
            for values in per_doc:
                for v in dict.fromkeys(values):
                    counts[v] = counts.get(v, 0) + 1
            top = sorted(counts.items(), key=lambda kv: (-kv[1], str(kv[0])))
            size = arg.get("size", 10)
            out[name] = {
                "doc_count_error_upper_bound": 0,
                "sum_other_doc_count": sum(c for _, c in top[size:]),
                "buckets": [{"key": k, "doc_count": c} for k, c in top[:size]],
            }
            continue
        flat = [v for values in per_doc for v in values]
        if kind == "value_count":
            out[name] = {"value": len(flat)}
        elif kind == "cardinality":
            out[name] = {"value": len(set(flat))}
        elif kind in ("stats", "min", "max", "sum", "avg"):
            n = len(flat)
            stats = {
                "count": n,
                "min": min(flat) if n else None,
                "max": max(flat) if n else None,
                "avg": sum(flat) / n if n else None,
                "sum": sum(flat),
            }
            out[name] = stats if kind == "stats" else {"value": stats[kind]}
        else:
            raise EsError(400, "parsing_exception", f"unknown aggregation [{kind}]")
    return out


def merge(into, patch):
    for key, value in patch.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            merge(into[key], value)
        else:
            into[key] = value
    return into


def update_doc(index, id_, body):
    old = index.docs.get(id_)
    if old is None:
        if body.get("doc_as_upsert"):
            return index.put(id_, body["doc"])
        if "upsert" in body:
            return index.put(id_, body["upsert"])
        raise EsError(404, "document_missing_exception", f"[{id_}]: document missing")
    source = json.loads(json.dumps(old["source"]))
    if "doc" in body:
        merge(source, body["doc"])
    elif "script" in body:
        script = body["script"]
        script = {"source": script} if isinstance(script, str) else script
        run_script(script.get("source") or "", script.get("params") or {}, source)
    return index.put(id_, source)


def run_script(code, params, source):
    if "params.response" in code:
        response = params["response"]
        kept = [r for r in source.get("responses") or [] if r.get("id") != response["id"]]
        if "responses.add(" in code:
            source["responses"] = [*kept, response]
        elif source.get("responses") is not None:
            source["responses"] = kept
        return
    match = re.search(r'ctx\._source\["suggestions"\]\.remove\("([^"]*)"\)', code)
    if match:
        (source.get("suggestions") or {}).pop(match.group(1), None)
        return
    raise EsError(400, "script_exception", "only argilla-server's own scripts are known")


def get_index(name, auto_create=False):
    if name not in INDICES:
        if not auto_create:
            raise EsError(404, "index_not_found_exception", f"no such index [{name}]")
        INDICES[name] = Index(name, {})
    return INDICES[name]


def doc_result(index, id_, doc, result):
    return {
        "_index": index.name,
        "_id": id_,
        "_version": doc["version"],
        "result": result,
        "_seq_no": doc["seq"],
        "_primary_term": 1,
        "_shards": {"total": 1, "successful": 1, "failed": 0},
    }


def bulk(lines, default_index):
    items, errors = [], False
    lines = iter([line for line in lines if line.strip()])
    for line in lines:
        ((op, meta),) = json.loads(line).items()
        body = json.loads(next(lines)) if op != "delete" else None
        name, id_ = (
            meta.get("_index") or default_index,
            str(meta.get("_id") or os.urandom(10).hex()),
        )
        try:
            index = get_index(name, auto_create=op != "delete")
            if op == "delete":
                doc = index.docs.pop(id_, None)
                result = "deleted" if doc else "not_found"
                doc = doc or {"version": 1, "seq": index.seq}
                status = 200 if result == "deleted" else 404
            elif op == "update":
                doc, result = update_doc(index, id_, body)
                status = 200
            else:
                doc, result = index.put(id_, body, create=op == "create")
                status = 201 if result == "created" else 200
            items.append({op: {**doc_result(index, id_, doc, result), "status": status}})
        except EsError as ex:
            errors = True
            items.append(
                {
                    op: {
                        "_index": name,
                        "_id": id_,
                        "status": ex.status,
                        "error": {"type": ex.type, "reason": ex.reason},
                    }
                }
            )
    return {"took": 1, "errors": errors, "items": items}


def search(index, body, params):
    start = time.time()
    size = int(body.get("size", params.get("size", 10)))
    from_ = int(body.get("from", params.get("from", 0)))
    if "knn" in body:
        hits = knn_hits(index, body["knn"])
    else:
        hits = matching(index, body.get("query"))
        hits.sort(key=lambda h: (-h[2], h[1]["seq"]))
    sort = (
        body.get("sort") or (params.get("sort") or "").split(",")
        if body.get("sort") or params.get("sort")
        else None
    )
    if sort:
        sort_hits(index, hits, sort)
    source = body.get("_source", params.get("_source", True))
    wanted = source not in (False, "false")
    out = []
    for id_, doc, score in hits[from_ : from_ + size]:
        hit = {"_index": index.name, "_id": id_, "_score": None if sort else score}
        if wanted:
            hit["_source"] = doc["source"]
        if sort:
            hit["sort"] = []
        out.append(hit)
    result = {
        "took": int((time.time() - start) * 1000),
        "timed_out": False,
        "_shards": {"total": 1, "successful": 1, "skipped": 0, "failed": 0},
        "hits": {
            "total": {"value": len(hits), "relation": "eq"},
            "max_score": None if sort or not hits else max(h[2] for h in hits),
            "hits": out,
        },
    }
    aggs = body.get("aggregations") or body.get("aggs")
    if aggs:
        result["aggregations"] = aggregate(index, hits, aggs)
    return result


def route(method, path, params, raw):
    parts = [unquote(p) for p in path.strip("/").split("/") if p]

    def body():
        return json.loads(raw) if raw.strip() else {}

    if not parts:
        return 200, {
            "name": "search-server",
            "cluster_name": "search-server",
            "cluster_uuid": "search-server",
            "version": {
                "number": VERSION,
                "build_flavor": "default",
                "build_type": "stand-in",
                "lucene_version": "9.5.0",
                "build_snapshot": False,
                "minimum_wire_compatibility_version": "7.17.0",
                "minimum_index_compatibility_version": "7.0.0",
            },
            "tagline": "You Know, for Search",
        }
    if parts[0] == "_cluster":
        return 200, {
            "cluster_name": "search-server",
            "status": "green",
            "timed_out": False,
            "number_of_nodes": 1,
            "number_of_data_nodes": 1,
        }
    if parts[-1] == "_refresh":
        return 200, {"_shards": {"total": 1, "successful": 1, "failed": 0}}
    if parts[-1] == "_bulk":
        return 200, bulk(raw.decode("utf-8").split("\n"), parts[0] if len(parts) > 1 else None)
    if parts[0] == "_cat":
        return 200, [
            {"index": i.name, "docs.count": str(len(i.docs)), "health": "green"}
            for i in INDICES.values()
        ]
    if parts[0].startswith("_"):
        raise EsError(
            400,
            "illegal_argument_exception",
            f"{method} {path} is not supported by the search server",
        )
    name, rest = parts[0], parts[1:]
    if not rest:
        if method == "HEAD":
            return (200 if name in INDICES else 404), None
        if method == "PUT":
            if name in INDICES:
                raise EsError(
                    400, "resource_already_exists_exception", f"index [{name}] already exists"
                )
            INDICES[name] = Index(name, body())
            return 200, {"acknowledged": True, "shards_acknowledged": True, "index": name}
        if method == "DELETE":
            if name not in INDICES and params.get("ignore_unavailable") == "true":
                return 200, {"acknowledged": True}
            get_index(name)
            del INDICES[name]
            return 200, {"acknowledged": True}
        index = get_index(name)
        return 200, {
            name: {"aliases": {}, "mappings": index.root, "settings": {"index": index.settings}}
        }
    index = get_index(name)
    op = rest[0]
    if op in ("_mapping", "_mappings"):
        if method == "GET":
            return 200, {name: {"mappings": index.root}}
        norm_props(body().get("properties"), index.root["properties"])
        return 200, {"acknowledged": True}
    if op == "_settings":
        return 200, {name: {"settings": {"index": index.settings}}}
    if op == "_search":
        return 200, search(index, body(), params)
    if op == "_count":
        return 200, {
            "count": len(matching(index, body().get("query"))),
            "_shards": {"total": 1, "successful": 1, "skipped": 0, "failed": 0},
        }
    if op == "_delete_by_query":
        gone = matching(index, body().get("query"))
        for id_, _, _ in gone:
            del index.docs[id_]
        return 200, {"deleted": len(gone), "total": len(gone), "failures": []}
    if op == "_update" and len(rest) == 2:
        doc, _ = update_doc(index, rest[1], body())
        return 200, doc_result(index, rest[1], doc, "updated")
    if op in ("_doc", "_create") and len(rest) == 2:
        id_ = rest[1]
        if method in ("PUT", "POST"):
            doc, result = index.put(id_, body(), create=op == "_create")
            return (201 if result == "created" else 200), doc_result(index, id_, doc, result)
        doc = index.docs.get(id_)
        if method == "DELETE":
            index.docs.pop(id_, None)
            return (200 if doc else 404), doc_result(
                index,
                id_,
                doc or {"version": 1, "seq": index.seq},
                "deleted" if doc else "not_found",
            )
        if doc is None:
            return 404, {"_index": name, "_id": id_, "found": False}
        return 200, {
            "_index": name,
            "_id": id_,
            "_version": doc["version"],
            "_seq_no": doc["seq"],
            "_primary_term": 1,
            "found": True,
            "_source": doc["source"],
        }
    raise EsError(
        400, "illegal_argument_exception", f"{method} {path} is not supported by the search server"
    )


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 65536
    trace = False

    def log_message(self, *args):
        pass

    def answer(self):
        url = urlsplit(self.path)
        params = {k: v[-1] for k, v in parse_qs(url.query, keep_blank_values=True).items()}
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            with LOCK:
                status, result = route(self.command, url.path, params, raw)
                data = b"" if result is None else json.dumps(result).encode("utf-8")
        except EsError as ex:
            status, data = ex.status, json.dumps(ex.body()).encode("utf-8")
        except Exception as ex:  # noqa: BLE001 (a bug in here must be seen, not hang the client)
            error = EsError(500, "search_server_bug", repr(ex))
            status, data = 500, json.dumps(error.body()).encode("utf-8")
        if self.trace or (status >= 400 and not (status == 404 and self.command == "HEAD")):
            print(
                self.command, self.path, status, raw[:2000], data[:500], file=sys.stderr, flush=True
            )
        self.send_response(status)
        self.send_header("X-Elastic-Product", "Elasticsearch")
        accept = self.headers.get("Accept") or ""
        self.send_header(
            "Content-Type",
            "application/vnd.elasticsearch+json;compatible-with=8"
            if "vnd.elasticsearch" in accept
            else "application/json",
        )
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
        self.wfile.flush()

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = answer  # noqa: N815


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


def guard(server):
    pids, homes = [], []
    for line in sys.stdin:
        word, _, arg = line.strip().partition(" ")
        if word == "guard":
            pids.append(int(arg))
        elif word == "home":
            homes.append(arg)
        elif word == "quit":
            os._exit(0)
    for sig, pause in ((signal.SIGTERM, 3.0), (signal.SIGKILL, 0.2)):
        for pid in pids:
            with contextlib.suppress(OSError):
                os.kill(pid, sig)
        deadline = time.time() + pause
        while time.time() < deadline and any(alive(p) for p in pids):
            time.sleep(0.05)
    for home in homes:
        shutil.rmtree(home, ignore_errors=True)
    os._exit(0)


def alive(pid):
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
        return stat.rsplit(b")", 1)[1].split()[0] != b"Z"
    except OSError:
        return False


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument(
        "--guard", action="store_true", help="obey guard/home/quit lines on stdin, leave at its end"
    )
    parser.add_argument("--trace", action="store_true", help="print every request to stderr")
    args = parser.parse_args()
    Handler.trace = args.trace
    server = Server(("127.0.0.1", args.port), Handler)
    print(json.dumps({"port": server.server_address[1]}), flush=True)
    if args.guard:
        threading.Thread(target=guard, args=(server,), daemon=True).start()
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    with contextlib.suppress(KeyboardInterrupt):
        server.serve_forever(poll_interval=0.5)


if __name__ == "__main__":
    main()
