// The AI SDK through five of its providers; each speaks one of our three dialects in its own way.
import assert from "node:assert/strict";
import test from "node:test";
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { createOpenResponses } from "@ai-sdk/open-responses";
import { APICallError, generateText, Output, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";
import {
  apiKey,
  baseURL,
  call,
  City,
  echo,
  Fact,
  maxTokens,
  models,
  tellWeather,
  text,
  told,
} from "./support.mjs";

const openai = createOpenAI({ baseURL, apiKey });
const compatible = createOpenAICompatible({
  name: "deepinfer",
  baseURL,
  apiKey,
  includeUsage: true,
  supportsStructuredOutputs: true,
});
const anthropic = createAnthropic({ baseURL, apiKey });
const openResponses = createOpenResponses({
  name: "deepinfer",
  url: `${baseURL}/responses`,
  apiKey,
});
const providers = {
  "openai, chat": openai.chat,
  "openai, responses": openai.responses,
  "openai-compatible": compatible,
  anthropic,
  "open-responses": openResponses,
};
const get_weather = tool({
  description: "Says the weather",
  inputSchema: City,
  execute: tellWeather,
});
const options = { maxRetries: 0, maxOutputTokens: maxTokens };

for (const [name, provider] of Object.entries(providers)) {
  test(`${name}: an answer and its stream are the same`, async () => {
    const answer = await generateText({ model: provider(echo), prompt: text, ...options });
    assert.equal(answer.text, text);
    assert.equal(answer.finishReason, "stop");
    assert.equal(answer.usage.outputTokens, answer.usage.inputTokens + 1);
    const stream = streamText({ model: provider(echo), prompt: text, ...options });
    assert.equal(await stream.text, text);
    const usage = await stream.usage;
    assert.deepEqual(
      [usage.inputTokens, usage.outputTokens],
      [answer.usage.inputTokens, answer.usage.outputTokens],
    );
  });

  test(`${name}: tools are called in a loop, in a stream too`, async () => {
    const request = {
      model: provider(echo),
      prompt: call(),
      tools: { get_weather },
      stopWhen: stepCountIs(4),
      ...options,
    };
    const answer = await generateText(request);
    assert.equal(answer.steps.length, 2);
    assert.deepEqual(
      answer.steps[0].toolCalls.map(({ toolName, input }) => [toolName, input]),
      [["get_weather", { city: "Oslo", days: 3 }]],
    );
    // What a provider makes of a result that is text: the text, or the text as JSON.
    assert.ok([told, JSON.stringify(told)].includes(answer.text), answer.text);
    const stream = streamText(request);
    assert.equal(await stream.text, answer.text);
    assert.equal((await stream.steps).length, 2);
  });

  test(`${name}: an unknown model is an error that is not tried again`, async () => {
    const asked = generateText({ model: provider("gone"), prompt: text, ...options });
    await assert.rejects(
      asked,
      (error) => APICallError.isInstance(error) && error.statusCode === 404 && !error.isRetryable,
    );
  });

  for (const model of models) {
    test(`${name}, ${model}: a required call fits the Zod schema`, async () => {
      const answer = await generateText({
        model: provider(model),
        prompt: "The weather?",
        tools: { get_weather },
        toolChoice: "required",
        ...options,
      });
      // Not every provider can ask for one call alone, and the last of many may be cut.
      const [{ toolName, input }] = answer.toolCalls;
      assert.equal(toolName, "get_weather");
      City.parse(input);
    });

    test(`${name}, ${model}: an object fits the Zod schema`, async () => {
      const answer = await generateText({
        model: provider(model),
        prompt: "A fact?",
        output: Output.object({ schema: Fact }),
        ...options,
      });
      Fact.parse(answer.output);
    });

    test(`${name}, ${model}: a record fits the Zod schema`, async () => {
      const Shares = z.object({
        shares: z.record(z.string().max(8), z.number().int().min(0).max(9)),
      });
      // Strict schemas have no records; who wants one turns that off.
      const providerOptions = {
        openai: { strictJsonSchema: false },
        deepinfer: { strictJsonSchema: false },
      };
      const answer = await generateText({
        model: provider(model),
        prompt: "Shares?",
        output: Output.object({ schema: Shares }),
        providerOptions,
        ...options,
      });
      Shares.parse(answer.output);
    });
  }
}

for (const name of ["openai, chat", "openai, responses", "openai-compatible"]) {
  test(`${name}: tools beside a schema can be called`, async () => {
    const answer = await generateText({
      model: providers[name]("sample-tools"),
      prompt: "The weather?",
      tools: { get_weather: tool({ inputSchema: City }) },
      toolChoice: "required",
      output: Output.object({ schema: Fact }),
      ...options,
    });
    assert.equal(answer.finishReason, "tool-calls");
    City.parse(answer.toolCalls[0].input);
  });
}
