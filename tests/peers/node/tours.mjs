// The tours of tests/peers/clients, for both generations of the TypeScript SDK, whose clients have the same methods.
const said = async (client, name, args) => (await client.callTool({ name, arguments: args })).content[0].text;

const withProgress = async (call) => {
  const progress = [];
  await call({ onprogress: (step) => progress.push(step.progress) });
  return progress;
};

export const answers = {
  sample: (params) => ({
    role: "assistant",
    model: "made-up",
    content: { type: "text", text: `heard '${params.messages[0].content.text}'` },
  }),
  elicit: (params) => ({
    action: "accept",
    content: Object.fromEntries(Object.keys(params.requestedSchema.properties).map((name) => [name, `my ${name}`])),
  }),
  roots: () => ({ roots: [{ uri: "file:///here" }] }),
};

// `call` passes the options of a tool call in the way of that generation.
export const tours = {
  offers: async (client, call) => ({
    tools: (await client.listTools()).tools.map((tool) => tool.name).sort(),
    resources: (await client.listResources()).resources.map((resource) => resource.uri).sort(),
    prompts: (await client.listPrompts()).prompts.map((prompt) => prompt.name).sort(),
    echo: await said(client, "echo", { text: "grüße\n\t✓" }),
    failed: (await client.callTool({ name: "test_error_handling", arguments: {} })).isError,
    image: (await client.callTool({ name: "test_image_content", arguments: {} })).content[0].mimeType,
    read: (await client.readResource({ uri: "test://static-text" })).contents[0].text,
    template: (await client.readResource({ uri: "test://template/7/data" })).contents[0].text,
    prompt: (await client.getPrompt({ name: "test_prompt_with_arguments", arguments: { arg1: "a", arg2: "b" } }))
      .messages[0].content.text,
    completion: (
      await client.complete({
        ref: { type: "ref/prompt", name: "test_prompt_with_arguments" },
        argument: { name: "arg1", value: "par" },
      })
    ).completion.values,
    progress: await withProgress((options) => call(client, "test_tool_with_progress", {}, options)),
  }),
  conversation: async (client) => ({
    sampled: await said(client, "test_sampling", { prompt: "hello" }),
    elicited: await said(client, "test_elicitation", { message: "who?" }),
    resumed: await said(client, "test_reconnection", {}),
  }),
  rounds: async (client) => ({
    elicited: await said(client, "test_input_required_result_elicitation", {}),
    sampled: await said(client, "test_input_required_result_sampling", {}),
    rooted: await said(client, "test_input_required_result_list_roots", {}),
    twice: await said(client, "test_input_required_result_multi_round", {}),
  }),
  everything: async (client, call) => ({
    echo: await said(client, "echo", { message: "hi" }),
    sum: await said(client, "get-sum", { a: 2, b: 3 }),
    prompt: (await client.getPrompt({ name: "args-prompt", arguments: { city: "Ulm" } })).messages[0].content.text,
    read: (await client.readResource({ uri: "demo://resource/static/document/features.md" })).contents[0].text.length > 0,
    progress: await withProgress((options) =>
      call(client, "trigger-long-running-operation", { duration: 0.3, steps: 3 }, options),
    ),
  }),
};
