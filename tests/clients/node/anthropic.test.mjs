// Anthropic's SDK for Node.
import assert from "node:assert/strict";
import test from "node:test";
import Anthropic from "@anthropic-ai/sdk";
import { betaZodTool } from "@anthropic-ai/sdk/helpers/beta/zod";
import { zodOutputFormat } from "@anthropic-ai/sdk/helpers/zod";
import { z } from "zod";
import {
  apiKey,
  BoundlessFact,
  call,
  City,
  echo,
  maxTokens,
  models,
  tellWeather,
  text,
  told,
  url,
} from "./support.mjs";

const client = new Anthropic({ baseURL: url, apiKey, maxRetries: 0 });
const body = (model, content, fields = {}) => ({
  model,
  max_tokens: maxTokens,
  messages: [{ role: "user", content }],
  ...fields,
});
const weather = {
  name: "get_weather",
  description: "Says the weather",
  input_schema: z.toJSONSchema(City),
};

test("an answer, its stream and the count of its tokens agree", async () => {
  const answer = await client.messages.create(body(echo, text));
  assert.deepEqual([answer.content[0].text, answer.stop_reason], [text, "end_turn"]);
  const streamed = await client.messages.stream(body(echo, text)).finalMessage();
  assert.deepEqual(streamed.content, answer.content);
  assert.equal(streamed.usage.output_tokens, answer.usage.output_tokens);
  const { max_tokens: _, ...question } = body(echo, text);
  assert.equal(
    (await client.messages.countTokens(question)).input_tokens,
    answer.usage.input_tokens,
  );
});

test("toolRunner calls the function and gives its result to the model", async () => {
  const tool = betaZodTool({
    name: "get_weather",
    description: "Says the weather",
    inputSchema: City,
    run: tellWeather,
  });
  const last = await client.beta.messages.toolRunner(body(echo, call(), { tools: [tool] }));
  assert.equal(last.content[0].text, told);
});

test("a streamed call adds up to its input", async () => {
  const answer = await client.messages
    .stream(body(echo, call(), { tools: [weather] }))
    .finalMessage();
  const block = answer.content.find(({ type }) => type === "tool_use");
  assert.deepEqual(block.input, { city: "Oslo", days: 3 });
  assert.equal(answer.stop_reason, "tool_use");
});

for (const model of models) {
  for (const choice of [{ type: "any" }, { type: "tool", name: "get_weather" }]) {
    test(`${model}: a call that is forced by ${choice.type} fits its schema`, async () => {
      const fields = {
        tools: [weather],
        tool_choice: { ...choice, disable_parallel_tool_use: true },
      };
      const answer = await client.messages.create(body(model, "The weather?", fields));
      const [block] = answer.content.filter(({ type }) => type === "tool_use");
      assert.equal(answer.stop_reason, "tool_use");
      City.parse(block.input);
    });
  }

  test(`${model}: parse gives an object of the Zod schema`, async () => {
    const answer = await client.messages.parse(
      body(model, "A fact?", { output_config: { format: zodOutputFormat(BoundlessFact) } }),
    );
    BoundlessFact.parse(answer.parsed_output);
  });
}

test("errors are those that the SDK has classes for", async () => {
  await assert.rejects(
    client.messages.create(body("gone", text)),
    (error) => error instanceof Anthropic.NotFoundError && Boolean(error.requestID),
  );
  await assert.rejects(
    client.messages.create(body(echo, text, { temperature: 3 })),
    Anthropic.BadRequestError,
  );
  await assert.rejects(
    client.messages.stream(body(echo, "x".repeat(20_000))).finalMessage(),
    Anthropic.BadRequestError,
  );
});
