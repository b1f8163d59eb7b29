// `node sdk2.mjs URL KEY TOUR MODE`: the TypeScript SDK 2.x, with `auto` (2026-07-28 where offered) or `legacy`
// negotiation. Prints what it saw as JSON.
import { Client, StreamableHTTPClientTransport } from "@modelcontextprotocol/client";
import { answers, tours } from "./tours.mjs";

const [url, key, tour, mode] = process.argv.slice(2);
const logs = [];
const client = new Client(
  { name: "sdk2", version: "1.0.0" },
  { capabilities: { sampling: {}, elicitation: {}, roots: {} }, versionNegotiation: { mode } },
);
client.setRequestHandler("sampling/createMessage", (request) => answers.sample(request.params));
client.setRequestHandler("elicitation/create", (request) => answers.elicit(request.params));
client.setRequestHandler("roots/list", () => answers.roots());
client.setNotificationHandler("notifications/message", (heard) => void logs.push(heard.params.data));

const transport = new StreamableHTTPClientTransport(new URL(url), {
  requestInit: { headers: { authorization: `Bearer ${key}` } },
});
await client.connect(transport);
const seen = await tours[tour](client, (to, name, args, options) => to.callTool({ name, arguments: args }, options));
const protocol = transport.protocolVersion;
if (transport.sessionId) await transport.terminateSession();
await client.close();
process.stdout.write(JSON.stringify({ ...seen, protocol, ...(tour === "conversation" ? { logs } : {}) }));
