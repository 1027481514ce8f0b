// What the tests share: where the server is, and what its models do.
import { z } from "zod";

export const url = process.env.DEEPINFER_URL;
export const baseURL = `${url}/v1`;
export const apiKey = "not-needed";

// `echo` answers with the last message; the two others are a real model, without and with tools in
// their chat template.
export const echo = "echo";
export const models = ["sample", "sample-tools"];

export const text = "Grüße 🎉 from Node";
export const maxTokens = 400;

// An integer without bounds, which Zod 4 bounds by what a double can hold, and one with bounds.
export const Fact = z.object({
  isTrue: z.boolean(),
  year: z.number().int(),
  share: z.number().min(0).max(1),
  kind: z.enum(["river", "mountain"]),
});
// Anthropic's SDK tells the model the bounds of numbers in words and sends none.
export const BoundlessFact = Fact.omit({ share: true });

export const City = z.object({
  city: z.enum(["Oslo", "Rome"]),
  days: z.number().int().min(1).max(9),
});

export const tellWeather = ({ city, days }) => `${days} days of sun in ${city}`;
export const told = "3 days of sun in Oslo";

// A call as the model writes it; `echo` says it when it is asked to.
export const call = (name = "get_weather", args = { city: "Oslo", days: 3 }) =>
  `<tool_call>\n${JSON.stringify({ name, arguments: args })}\n</tool_call>`;

export const collect = async (stream) => {
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  return chunks;
};
