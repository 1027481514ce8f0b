// The OpenAI SDK for Node, with Zod 4.
import assert from "node:assert/strict";
import test from "node:test";
import OpenAI from "openai";
import {
  zodFunction,
  zodResponseFormat,
  zodResponsesFunction,
  zodTextFormat,
} from "openai/helpers/zod";
import { z } from "zod";
import {
  apiKey,
  baseURL,
  call,
  City,
  collect,
  echo,
  Fact,
  maxTokens,
  models,
  tellWeather,
  text,
  told,
} from "./support.mjs";

const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const say = (content) => [{ role: "user", content }];
const weather = zodFunction({ name: "get_weather", parameters: City, function: tellWeather });
const clock = { type: "function", function: { name: "clock" } };

test("an answer comes with its usage", async () => {
  const answer = await client.chat.completions.create({ model: echo, messages: say(text) });
  assert.equal(answer.choices[0].message.content, text);
  assert.equal(answer.choices[0].finish_reason, "stop");
  assert.equal(answer.usage.completion_tokens, answer.usage.prompt_tokens + 1); // and the end
});

test("the chunks of a stream add up to the answer", async () => {
  const stream = await client.chat.completions.create({
    model: echo,
    messages: say(text),
    stream: true,
    stream_options: { include_usage: true },
  });
  const chunks = await collect(stream);
  assert.equal(chunks.map((chunk) => chunk.choices[0]?.delta.content ?? "").join(""), text);
  assert.equal(chunks.at(-1).usage.completion_tokens, chunks.at(-1).usage.prompt_tokens + 1);
});

test("streamed calls add up to those of a plain answer", async () => {
  const body = { model: echo, messages: say(call() + call("clock", {})), tools: [weather, clock] };
  const whole = await client.chat.completions.create(body);
  const streamed = await client.chat.completions.stream(body).finalChatCompletion();
  const calls = ({ choices }) =>
    choices[0].message.tool_calls.map((each) => [
      each.function.name,
      JSON.parse(each.function.arguments),
    ]);
  assert.deepEqual(calls(whole), [
    ["get_weather", { city: "Oslo", days: 3 }],
    ["clock", {}],
  ]);
  assert.deepEqual(calls(streamed), calls(whole));
  assert.equal(streamed.choices[0].finish_reason, "tool_calls");
});

test("runTools calls the function and gives its result to the model", async () => {
  for (const stream of [false, true]) {
    const runner = client.chat.completions.runTools({
      model: echo,
      messages: say(call()),
      tools: [weather],
      stream,
    });
    assert.equal(await runner.finalContent(), told);
    assert.equal(runner.messages.filter(({ role }) => role === "tool").length, 1);
  }
});

for (const model of models) {
  test(`${model}: parse gives an object of the Zod schema`, async () => {
    const body = {
      model,
      messages: say("A fact?"),
      response_format: zodResponseFormat(Fact, "fact"),
      max_tokens: maxTokens,
    };
    const answer = await client.chat.completions.parse(body);
    assert.deepEqual(
      Fact.parse(answer.choices[0].message.parsed),
      answer.choices[0].message.parsed,
    );
    const streamed = await client.chat.completions.stream(body).finalChatCompletion();
    Fact.parse(streamed.choices[0].message.parsed);
  });

  test(`${model}: a record of the Zod schema has its kind of values`, async () => {
    const Shares = z.object({
      shares: z.record(z.enum(["red", "blue"]), z.number().min(0).max(1)),
    });
    const format = {
      type: "json_schema",
      json_schema: { name: "shares", schema: z.toJSONSchema(Shares) },
    };
    const answer = await client.chat.completions.create({
      model,
      messages: say("Shares?"),
      response_format: format,
      max_tokens: maxTokens,
    });
    Shares.parse(JSON.parse(answer.choices[0].message.content));
  });

  for (const choice of ["required", { type: "function", function: { name: "get_weather" } }]) {
    test(`${model}: a call that is ${choice.type ? "named" : choice} fits the Zod schema`, async () => {
      const answer = await client.chat.completions.parse({
        model,
        messages: say("The weather?"),
        tools: [weather],
        tool_choice: choice,
        parallel_tool_calls: false,
        max_tokens: maxTokens,
      });
      assert.equal(answer.choices[0].finish_reason, "tool_calls");
      const [made] = answer.choices[0].message.tool_calls;
      assert.equal(made.function.name, "get_weather");
      City.parse(made.function.parsed_arguments);
    });
  }

  test(`${model}: a function without parameters is called without any`, async () => {
    const answer = await client.chat.completions.create({
      model,
      messages: say("The time?"),
      tools: [clock],
      tool_choice: "required",
      parallel_tool_calls: false,
      max_tokens: maxTokens,
    });
    assert.equal(answer.choices[0].message.tool_calls[0].function.arguments, "{}");
  });

  test(`${model}: tools that may be called leave an answer possible`, async () => {
    const answer = await client.chat.completions.create({
      model,
      messages: say("Tell me a story"),
      tools: [weather],
      tool_choice: null,
      max_tokens: 40,
    });
    const { message, finish_reason: reason } = answer.choices[0];
    assert.ok(message.tool_calls?.length || message.content, reason);
    assert.ok(answer.usage.prompt_tokens > 60, "the model sees the tools");
  });
}

test("responses: an answer, its stream and what follows on it", async () => {
  const answer = await client.responses.create({ model: echo, input: text });
  assert.equal(answer.output_text, text);
  assert.equal(answer.usage.total_tokens, answer.usage.input_tokens + answer.usage.output_tokens);
  const events = await collect(
    await client.responses.create({ model: echo, input: text, stream: true }),
  );
  assert.equal(
    events
      .filter(({ type }) => type === "response.output_text.delta")
      .map(({ delta }) => delta)
      .join(""),
    text,
  );
  assert.equal(events.at(-1).type, "response.completed");
  const next = await client.responses.create({
    model: echo,
    input: "and then?",
    previous_response_id: answer.id,
  });
  assert.equal(next.output_text, "and then?");
});

test("responses: the result of a call goes back to the model", async () => {
  const tools = [zodResponsesFunction({ name: "get_weather", parameters: City })];
  const asked = await client.responses.parse({
    model: echo,
    input: say(call()),
    tools,
    store: false,
  });
  const made = asked.output.find(({ type }) => type === "function_call");
  assert.deepEqual(made.parsed_arguments, { city: "Oslo", days: 3 });
  const input = [
    ...say(call()),
    ...asked.output,
    { type: "function_call_output", call_id: made.call_id, output: told },
  ];
  assert.equal(
    (await client.responses.create({ model: echo, input, tools, store: false })).output_text,
    told,
  );
});

for (const model of models) {
  test(`${model}: responses.parse gives an object of the Zod schema`, async () => {
    const answer = await client.responses.parse({
      model,
      input: "A fact?",
      text: { format: zodTextFormat(Fact, "fact") },
    });
    Fact.parse(answer.output_parsed);
  });
}

test("errors are those that the SDK has classes for", async () => {
  const ask = (fields) =>
    client.chat.completions.create({ model: echo, messages: say(text), ...fields });
  await assert.rejects(
    ask({ model: "gone" }),
    (error) => error instanceof OpenAI.NotFoundError && error.code === "model_not_found",
  );
  await assert.rejects(
    ask({ temperature: 3 }),
    (error) => error instanceof OpenAI.BadRequestError && error.param === "temperature",
  );
  await assert.rejects(
    ask({ messages: say("x".repeat(20_000)) }),
    (error) => error.code === "context_length_exceeded",
  );
  await assert.rejects(
    ask({ temperature: 3, stream: true }),
    (error) => error.status === 400 && Boolean(error.requestID),
  );
});
