// LangChain's ChatOpenAI for Node, through chats and through responses.
import assert from "node:assert/strict";
import test from "node:test";
import { HumanMessage, SystemMessage, ToolMessage } from "@langchain/core/messages";
import { tool } from "@langchain/core/tools";
import { ChatOpenAI } from "@langchain/openai";
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

const connect = (model, fields = {}) =>
  new ChatOpenAI({
    model,
    apiKey,
    maxRetries: 0,
    maxTokens,
    configuration: { baseURL },
    ...fields,
  });
const weather = tool(tellWeather, {
  name: "get_weather",
  description: "Says the weather",
  schema: City,
});

for (const useResponsesApi of [false, true]) {
  const dialect = useResponsesApi ? "responses" : "chat";
  const llm = connect(echo, { useResponsesApi });

  test(`${dialect}: an answer comes with its usage, and streams`, async () => {
    const answer = await llm.invoke([new SystemMessage("Be brief."), new HumanMessage(text)]);
    assert.equal(answer.text, text);
    assert.equal(answer.usage_metadata.output_tokens, answer.usage_metadata.input_tokens + 1);
    let joined;
    for await (const chunk of await llm.stream(text))
      joined = joined ? joined.concat(chunk) : chunk;
    assert.equal(joined.text, text);
    assert.equal(joined.usage_metadata.total_tokens, answer.usage_metadata.total_tokens);
  });

  test(`${dialect}: the result of a call goes back to the model`, async () => {
    const agent = llm.bindTools([weather]);
    const asked = await agent.invoke(call());
    assert.deepEqual(
      asked.tool_calls.map(({ name, args }) => [name, args]),
      [["get_weather", { city: "Oslo", days: 3 }]],
    );
    const result = await weather.invoke(asked.tool_calls[0]);
    assert.ok(result instanceof ToolMessage);
    assert.equal((await agent.invoke([new HumanMessage(call()), asked, result])).text, told);
  });

  for (const model of models) {
    test(`${dialect}, ${model}: a forced call fits the Zod schema`, async () => {
      // In responses this LangChain sends a name only; it leaves "required" out of the request.
      const choice = useResponsesApi ? "get_weather" : "required";
      const options = { tool_choice: choice, parallel_tool_calls: false };
      const forced = connect(model, { useResponsesApi }).bindTools([weather], options);
      const answer = await forced.invoke("The weather?");
      assert.equal(answer.tool_calls.length, 1);
      City.parse(answer.tool_calls[0].args);
    });

    for (const method of ["jsonSchema", "functionCalling"]) {
      test(`${dialect}, ${model}: a structured answer by ${method}`, async () => {
        const structured = connect(model, { useResponsesApi }).withStructuredOutput(Fact, {
          method,
          name: "fact",
        });
        Fact.parse(await structured.invoke("A fact?"));
      });
    }
  }

  test(`${dialect}: an error keeps its status and code`, async () => {
    await assert.rejects(
      connect("gone", { useResponsesApi }).invoke(text),
      (error) => error.status === 404 && error.code === "model_not_found",
    );
    await assert.rejects(
      llm.invoke("x".repeat(20_000)),
      (error) => error.code === "context_length_exceeded" || error.name === "ContextOverflowError",
    );
  });
}
