"""Byte streams that are not quite HTTP/1.1. Each must get a 4xx or a closed connection, never an answer of the
application, and never a second answer."""

from __future__ import annotations

HOST = b"Host: 127.0.0.1\r\n"
JSON = b"Content-Type: application/json\r\n"
POST = b"POST /v1/completions HTTP/1.1\r\n" + HOST + JSON
GET = b"GET /v1/models HTTP/1.1\r\n" + HOST
HIDDEN = b"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
"""A request smuggled behind an ambiguous one."""

MALFORMED: dict[str, bytes] = {
    "empty_line_only": b"\r\n\r\n\r\nX\r\n\r\n",
    "garbage": bytes(range(256)) * 4 + b"\r\n\r\n",
    "tls_hello": bytes.fromhex("16030100f4010000f00303") + b"\x00" * 200,
    "http2_preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "no_version": b"GET /v1/models\r\n\r\n",
    "version_0_9": b"GET /v1/models HTTP/0.9\r\n\r\n",
    "version_2_0": b"GET /v1/models HTTP/2.0\r\n" + HOST + b"\r\n",
    "version_lower_case": b"GET /v1/models http/1.1\r\n" + HOST + b"\r\n",
    "version_long": b"GET /v1/models HTTP/1.11\r\n" + HOST + b"\r\n",
    "space_in_target": b"GET /v1/ models HTTP/1.1\r\n" + HOST + b"\r\n",
    "control_in_target": b"GET /v1/\x01models HTTP/1.1\r\n" + HOST + b"\r\n",
    "null_in_target": b"GET /v1/\x00models HTTP/1.1\r\n" + HOST + b"\r\n",
    "target_without_slash": b"GET v1/models HTTP/1.1\r\n" + HOST + b"\r\n",
    "target_asterisk": b"GET * HTTP/1.1\r\n" + HOST + b"\r\n",
    "connect": b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com\r\n\r\n",
    "method_unknown": b"STEAL /v1/models HTTP/1.1\r\n" + HOST + b"\r\n",
    "method_with_bracket": b"GE{T /v1/models HTTP/1.1\r\n" + HOST + b"\r\n",
    "no_host": b"GET /v1/models HTTP/1.1\r\n\r\n",
    "two_hosts": GET + b"Host: evil.example\r\n\r\n",
    "header_without_colon": GET + b"nonsense\r\n\r\n",
    "header_name_empty": GET + b": value\r\n\r\n",
    "header_name_with_space": GET + b"X-A : value\r\n\r\n",
    "header_name_with_null": GET + b"X-\x00A: value\r\n\r\n",
    "header_value_with_null": GET + b"X-A: va\x00lue\r\n\r\n",
    "header_value_with_bare_cr": GET + b"X-A: va\rlue\r\n\r\n",
    "header_bare_lf_smuggled": GET + b"X-A: value\nTransfer-Encoding: chunked\n\n0\r\n\r\n",
    "content_length_negative": POST + b"Content-Length: -1\r\n\r\n{}",
    "content_length_plus": POST + b"Content-Length: +2\r\n\r\n{}",
    "content_length_hex": POST + b"Content-Length: 0x2\r\n\r\n{}",
    "content_length_words": POST + b"Content-Length: two\r\n\r\n{}",
    "content_length_list": POST + b"Content-Length: 2, 2\r\n\r\n{}",
    "content_length_empty": POST + b"Content-Length: \r\n\r\n",
    "content_length_overflow": POST + b"Content-Length: 18446744073709551618\r\n\r\n{}",
    "content_length_twice": POST + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
    "content_length_two_values": POST + b"Content-Length: 2\r\nContent-Length: 60\r\n\r\n{}" + HIDDEN,
    "cl_te": POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + HIDDEN,
    "te_cl": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + HIDDEN,
    "te_twice": POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + HIDDEN,
    "te_identity": POST + b"Transfer-Encoding: identity\r\n\r\n{}",
    "te_gzip_chunked": POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "te_chunked_not_last": POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + HIDDEN,
    "te_hidden_by_space": POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + HIDDEN,
    "te_hidden_by_fold": POST + b"Transfer-Encoding:\r\n chunkedx\r\n\r\n0\r\n\r\n" + HIDDEN,
    "te_with_http_1_0": b"POST /v1/completions HTTP/1.0\r\n" + JSON + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunk_size_negative": POST + b"Transfer-Encoding: chunked\r\n\r\n-2\r\n{}\r\n0\r\n\r\n",
    "chunk_size_words": POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
    "chunk_size_overflow": POST + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n{}\r\n0\r\n\r\n",
    "chunk_size_prefixed": POST + b"Transfer-Encoding: chunked\r\n\r\n0x2\r\n{}\r\n0\r\n\r\n",
    "chunk_too_long": POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}{}\r\n0\r\n\r\n",
    "chunk_bare_lf": POST + b"Transfer-Encoding: chunked\r\n\r\n2\n{}\n0\n\n" + HIDDEN,
    "header_giant": GET + b"X-A: " + b"a" * 2**18 + b"\r\n\r\n",
    "header_name_giant": GET + b"X-" + b"a" * 2**18 + b": 1\r\n\r\n",
    "headers_many": GET + b"X-A: 1\r\n" * 2000 + b"\r\n",
    "target_giant": b"GET /" + b"a" * 2**18 + b" HTTP/1.1\r\n" + HOST + b"\r\n",
}
"""More than the 44 of the reliability table; by what is wrong with them."""
