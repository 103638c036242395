// What the AI SDK and OpenAI's client for Node get from a server: one line of JSON for each thing that was tried.
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, streamObject, streamText, stepCountIs, tool } from "ai";
import OpenAI from "openai";
import { z } from "zod";

const { BASE_URL: baseURL, MODEL } = process.env;
const TURNS = 10;
const compatible = createOpenAICompatible({
  name: "keepwarm",
  baseURL,
  apiKey: "unused",
  includeUsage: true,
  supportsStructuredOutputs: true,
});
const openai = createOpenAI({ baseURL, apiKey: "unused" });
const models = { compatible: compatible(MODEL), responses: openai.responses(MODEL), chat: openai.chat(MODEL) };
const forecast = z.object({ city: z.enum(["Oslo", "Bergen"]), degrees: z.number().int() });
const asked = { prompt: "The weather in Oslo as JSON: city and degrees.", schema: forecast, maxOutputTokens: 120 };
const weather = tool({
  description: "The weather of a city.",
  inputSchema: z.object({ city: z.enum(["Oslo", "Bergen"]) }),
  execute: async ({ city }) => `${city.length} degrees`,
});

const cost = (usage) => ({
  prompt: usage.inputTokens,
  sampled: usage.outputTokens,
  fed: usage.inputTokens - usage.inputTokenDetails.cacheReadTokens,
});

async function chat(name, model) {
  const messages = [];
  const turns = [];
  for (let turn = 0; turn < TURNS; turn++) {
    messages.push({ role: "user", content: `Name a thing with ${turn} wings (${name}).` });
    const settings = { model, messages, system: `Answer in one short sentence (${name}).`, maxOutputTokens: 24 };
    const made = turn % 2 ? streamText(settings) : await generateText(settings);
    messages.push(...(await made.response).messages);
    turns.push(cost(await made.usage));
  }
  return turns;
}

async function tools(name, model) {
  const made = await generateText({
    model,
    tools: { weather },
    toolChoice: "required",
    stopWhen: stepCountIs(TURNS),
    prompt: `What is the weather in Oslo? (${name})`,
    maxOutputTokens: 120,
  });
  return made.steps.map((step) => cost(step.usage));
}

async function streamedObject(model) {
  const made = streamObject({ model, ...asked, temperature: 0 });
  for await (const _ of made.partialObjectStream);
  return made.object;
}

async function node() {
  const client = new OpenAI({ baseURL, apiKey: "unused", maxRetries: 0 });
  const first = await client.responses.create({ model: MODEL, input: "Say hello.", max_output_tokens: 8 });
  const items = [];
  for await (const item of client.responses.inputItems.list(first.id)) items.push(item);
  const ended = await client.responses.cancel(first.id);
  return { text: first.output_text, items: items.length, status: ended.status };
}

async function attempt(name, work) {
  try {
    console.log(JSON.stringify({ name, found: await work() }));
  } catch (error) {
    console.log(JSON.stringify({ name, error: `${error} ${error.responseBody ?? ""}` }));
  }
}

for (const [name, model] of Object.entries(models)) {
  await attempt(`chat ${name}`, () => chat(name, model));
  await attempt(`tools ${name}`, () => tools(name, model));
  await attempt(`object ${name}`, async () => (await generateObject({ model, ...asked, temperature: 0 })).object);
  await attempt(`streamed object ${name}`, () => streamedObject(model));
}
await attempt("node", node);
