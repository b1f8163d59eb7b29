// `node sdk1.mjs URL KEY TOUR`: the TypeScript SDK 1.x, which opens with `initialize`. Prints what it saw as JSON.
import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";
import {
  CallToolResultSchema,
  CreateMessageRequestSchema,
  ElicitRequestSchema,
  LoggingMessageNotificationSchema,
} from "@modelcontextprotocol/sdk/types.js";
import { answers, tours } from "./tours.mjs";

const [url, key, tour] = process.argv.slice(2);
const logs = [];
const client = new Client({ name: "sdk1", version: "1.0.0" }, { capabilities: { sampling: {}, elicitation: {} } });
client.setRequestHandler(CreateMessageRequestSchema, (request) => answers.sample(request.params));
client.setRequestHandler(ElicitRequestSchema, (request) => answers.elicit(request.params));
client.setNotificationHandler(LoggingMessageNotificationSchema, (heard) => void logs.push(heard.params.data));

const transport = new StreamableHTTPClientTransport(new URL(url), {
  requestInit: { headers: { authorization: `Bearer ${key}` } },
});
await client.connect(transport);
const seen = await tours[tour](client, (to, name, args, options) =>
  to.callTool({ name, arguments: args }, CallToolResultSchema, options),
);
const protocol = transport.protocolVersion;
await transport.terminateSession();
await client.close();
process.stdout.write(JSON.stringify({ ...seen, protocol, ...(tour === "conversation" ? { logs } : {}) }));
