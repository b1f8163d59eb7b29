// Adds `Authorization: Bearer $GATEWAY_KEY` to every request for $GATEWAY_ORIGIN, and to no other: the conformance suite
// has no option for headers. Loaded with `NODE_OPTIONS=--import`. Requests leave that suite in three ways: the global
// fetch and undici's `request`, which share one dispatcher, and node:http.
import http from "node:http";
import { syncBuiltinESMExports } from "node:module";
import { getGlobalDispatcher } from "undici";

const { GATEWAY_ORIGIN: origin, GATEWAY_KEY: key } = process.env;
const value = `Bearer ${key}`;

const dispatcher = getGlobalDispatcher();
const dispatch = dispatcher.dispatch.bind(dispatcher);
dispatcher.dispatch = (options, handler) =>
  dispatch(String(options.origin) === origin ? { ...options, headers: added(options.headers) } : options, handler);

// undici takes a flat list of names and values, an iterable of pairs, or an object.
function added(headers) {
  if (Array.isArray(headers) && !Array.isArray(headers[0])) return [...headers, "authorization", value];
  if (headers && typeof headers[Symbol.iterator] === "function") return [...headers, ["authorization", value]];
  return { ...headers, authorization: value };
}

const request = http.request;
http.request = (...given) => {
  const [first] = given;
  const target = typeof first === "string" ? new URL(first) : first;
  const made = request(...given);
  if (`${target.protocol ?? "http:"}//${target.hostname ?? target.host}:${target.port}` === origin) {
    made.setHeader("authorization", value);
  }
  return made;
};

syncBuiltinESMExports();
