// What an application does with the `openai` package, call by call: node calls.mjs LIST BASE_URL MODEL OTHER [OTHER_URL]
// LIST is `engine` (an engine's own answers; OTHER embeds, and may have a server of its own) or `service` (what a service keeps:
// files, batches, responses; OTHER is a slow model). Calls named `error: ` fail.
// A line for each call goes to stdout: {"name", "result"} or {"name", "error"}. Calls run one after another, and may use what
// those above them left in `kept`.
import OpenAI, { APIError, toFile } from 'openai';
import { zodResponseFormat, zodTextFormat } from 'openai/helpers/zod';
import { z } from 'zod';

const [list, baseURL, model, other, otherURL = baseURL] = process.argv.slice(2);
const options = { apiKey: 'none', maxRetries: 0, timeout: 90_000 };
const client = new OpenAI({ baseURL, ...options });
const embedding = new OpenAI({ baseURL: otherURL, ...options });
const kept = {};

const QUESTION = [{ role: 'user', content: 'Name three rivers of Europe, and say one thing of each.' }];
const chat = { model, messages: QUESTION, temperature: 0, max_tokens: 10 };
const prompt = { model, prompt: 'The river flows', temperature: 0, max_tokens: 8 };
const asked = { model, input: 'Name three rivers of Europe.', temperature: 0, max_output_tokens: 10 };
const River = z.object({ name: z.enum(['Rhine', 'Seine']), wide: z.boolean() });
const lookUp = {
  name: 'look_up',
  description: 'Looks up a river.',
  strict: true,
  parameters: {
    type: 'object',
    properties: { name: { type: 'string', enum: ['Rhine', 'Seine'] } },
    required: ['name'],
    additionalProperties: false,
  },
};
const TOOLS = [{ type: 'function', function: lookUp }];
const NAMED = { type: 'function', function: { name: 'look_up' } };
const tooled = { ...chat, max_tokens: 150, tools: TOOLS, tool_choice: NAMED };
const LONG = Array.from({ length: 400 }, (_, n) => `word${n}`).join(' ');

/** What a stream of chunks adds up to: the same text may come in other pieces. */
async function joined(stream) {
  const choices = {};
  let usage = null;
  for await (const chunk of stream) {
    for (const { index, delta, text, finish_reason, logprobs } of chunk.choices) {
      const whole = (choices[index] ??= { text: '', logprobs: 0, tools: [] });
      whole.text += delta?.content ?? text ?? '';
      whole.logprobs += logprobs?.content?.length ?? 0;
      for (const { index: n, function: called } of delta?.tool_calls ?? []) {
        const tool = (whole.tools[n] ??= { name: '', arguments: '' });
        tool.name += called?.name ?? '';
        tool.arguments += called?.arguments ?? '';
      }
      whole.finish_reason = finish_reason ?? whole.finish_reason;
    }
    usage = chunk.usage ?? usage;
  }
  return { choices, usage };
}

/** The white space of arguments is drawn between two that are as likely. */
const read = ({ name, arguments: text }) => [name, JSON.parse(text)];

/** Types of events, each once where it follows itself, and the text of the deltas. */
function told(events) {
  const types = events.map(({ type }) => type).filter((type, n, all) => type !== all[n - 1]);
  const deltas = events.filter(({ type }) => type === 'response.output_text.delta');
  return { types, text: deltas.map(({ delta }) => delta).join('') };
}

async function all(stream) {
  const items = [];
  for await (const item of stream) items.push(item);
  return items;
}

/** Asks until it is so. */
async function until(ask, so) {
  const giveUpAt = Date.now() + 60_000;
  for (;;) {
    const answer = await ask();
    if (so(answer)) return answer;
    if (Date.now() > giveUpAt) throw new Error(`not within a minute: ${so}; it is ${JSON.stringify(answer)}`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

const ended = ({ status }) => !['queued', 'in_progress', 'validating', 'finalizing', 'cancelling'].includes(status);
const said = (text, more = {}) => ({ model, messages: [{ role: 'user', content: text }], ...more });

const engine = {
  'chat.completions.create': () => client.chat.completions.create(chat),
  'chat.completions.create, streamed': async () =>
    joined(await client.chat.completions.create({ ...chat, stream: true, stream_options: { include_usage: true } })),
  'chat.completions.create with logprobs': () =>
    client.chat.completions.create({ ...chat, max_tokens: 4, logprobs: true, top_logprobs: 2 }),
  'chat.completions.create with logprobs, streamed': async () =>
    joined(await client.chat.completions.create({ ...chat, max_tokens: 4, logprobs: true, stream: true })),
  'chat.completions.create of two choices': () =>
    client.chat.completions.create({ ...chat, n: 2, seed: 7, temperature: 0.8 }),
  'chat.completions.create with a stop': () => client.chat.completions.create({ ...chat, max_tokens: 40, stop: ['.'] }),
  'chat.completions.create with a tool': async () => {
    const { message, finish_reason } = (await client.chat.completions.create(tooled)).choices[0];
    return { called: message.tool_calls.map(({ function: called }) => read(called)), finish_reason };
  },
  'chat.completions.create with a tool, streamed': async () => {
    const { tools, finish_reason } = (await joined(await client.chat.completions.create({ ...tooled, stream: true })))
      .choices[0];
    return { called: tools.map(read), finish_reason };
  },
  "chat.completions.create with a tool's result": () => {
    const call = { id: 'call-1', type: 'function', function: { name: 'look_up', arguments: '{"name":"Rhine"}' } };
    const results = [
      { role: 'assistant', content: null, tool_calls: [call] },
      { role: 'tool', tool_call_id: 'call-1', content: 'It is 1233 km long.' },
    ];
    return client.chat.completions.create({ ...chat, messages: [...QUESTION, ...results], tools: TOOLS });
  },
  'chat.completions.runTools': async () => {
    const calls = [];
    const tool = { ...lookUp, parse: JSON.parse, function: ({ name }) => calls.push(name) && 'It is long.' };
    const runner = client.chat.completions.runTools({ ...tooled, tools: [{ type: 'function', function: tool }] });
    await runner.done();
    return { calls, roles: runner.messages.map(({ role }) => role) };
  },
  'chat.completions.runTools, streamed, of a model that calls none': async () => {
    const tool = { ...lookUp, parse: JSON.parse, function: () => 'It is long.' };
    const tools = [{ type: 'function', function: tool }];
    return client.chat.completions.runTools({ ...chat, max_tokens: 40, stop: ['.'], tools, stream: true }).finalContent();
  },
  'chat.completions.parse': async () => {
    const format = { max_tokens: 60, response_format: zodResponseFormat(River, 'river') };
    return (await client.chat.completions.parse({ ...chat, ...format })).choices[0].message.parsed;
  },
  'chat.completions.stream': async () => {
    const seen = { text: '', done: '' };
    const stream = client.chat.completions
      .stream({ ...chat, stream_options: { include_usage: true } })
      .on('content.delta', ({ delta }) => (seen.text += delta))
      .on('content.done', ({ content }) => (seen.done = content));
    return { whole: await stream.finalChatCompletion(), usage: await stream.totalUsage(), seen };
  },
  'chat.completions.stream, parsed': async () => {
    const format = { max_tokens: 60, response_format: zodResponseFormat(River, 'river') };
    return (await client.chat.completions.stream({ ...chat, ...format }).finalMessage()).parsed;
  },
  'completions.create': () => client.completions.create(prompt),
  'completions.create, streamed': async () => joined(await client.completions.create({ ...prompt, stream: true })),
  'completions.create of two prompts': () => client.completions.create({ ...prompt, prompt: ['The river', 'A lake'] }),
  'responses.create': () => client.responses.create(asked),
  'responses.create, streamed': async () => told(await all(await client.responses.create({ ...asked, stream: true }))),
  'responses.stream': async () => {
    const stream = client.responses.stream(asked);
    const { types, text } = told(await all(stream));
    return { types, text, whole: await stream.finalResponse() };
  },
  'responses.parse': async () => {
    const format = { max_output_tokens: 60, text: { format: zodTextFormat(River, 'river') } };
    return (await client.responses.parse({ ...asked, ...format })).output_parsed;
  },
  'embeddings.create': () => embedding.embeddings.create({ model: other, input: ['The river', 'A lake'] }),
  'embeddings.create, of numbers': () =>
    embedding.embeddings.create({ model: other, input: 'The river', encoding_format: 'float' }),
  'models.list': async () => (await all(client.models.list())).some(({ id }) => id === model),
  'a stream that is aborted': async () => {
    const stream = await client.chat.completions.create({ ...chat, max_tokens: 400, stream: true });
    let chunks = 0;
    for await (const _ of stream) if (++chunks === 2) stream.controller.abort();
    return chunks;
  },
  'error: aborted': () => {
    const aborted = AbortSignal.abort();
    return client.chat.completions.create({ ...chat, max_tokens: 400 }, { signal: aborted });
  },
  'error: too late': () =>
    client.chat.completions.create({ ...chat, max_tokens: 900, ignore_eos: true }, { timeout: 100 }),
  'error: an unknown model': () => client.chat.completions.create({ ...chat, model: 'nope' }),
  'error: a field of a wrong type': () => client.chat.completions.create({ ...chat, temperature: 'hot' }),
  'error: a stream with a field of a wrong type': () =>
    client.chat.completions.create({ ...chat, temperature: 'hot', stream: true }),
  'error: no messages': () => client.chat.completions.create({ ...chat, messages: undefined }),
  'error: a prompt that is too long': () => client.completions.create({ ...prompt, prompt: 'word '.repeat(3000) }),
};

const service = {
  'models.retrieve': () => client.models.retrieve(model),
  'models.retrieve of an unknown one': () => client.models.retrieve('some/model'),
  'create().withResponse': async () => {
    const { data, response } = await client.chat.completions.create(said('a b')).withResponse();
    return [data.choices[0].message.content, response.headers.get('x-headrace-task') !== null];
  },
  'chat.completions.create twice with one key': async () => {
    const headers = { 'Idempotency-Key': `once-${process.pid}` };
    const ask = () => client.chat.completions.create(said('a b'), { headers });
    return (await ask()).id === (await ask()).id;
  },
  'embeddings.create': async () => {
    const packed = await client.embeddings.create({ model, input: ['a b', 'c'] });
    const plain = await client.embeddings.create({ model, input: ['a b', 'c'], encoding_format: 'float' });
    const far = (n) => Math.abs(packed.data[0].embedding[n] - plain.data[0].embedding[n]);
    return { length: packed.data[1].embedding.length, same: [...Array(16).keys()].every((n) => far(n) < 1e-6) };
  },
  'audio.speech.create': async () => {
    const spoken = await client.audio.speech.create({ model, input: 'do re', voice: 'alloy', response_format: 'wav' });
    return Buffer.from(await spoken.arrayBuffer()).toString('latin1', 0, 4);
  },
  'audio.transcriptions.create': async () =>
    client.audio.transcriptions.create({ model, file: await toFile(Buffer.alloc(70_000), 'a.wav') }),
  'audio.translations.create': async () =>
    client.audio.translations.create({ model, file: await toFile(Buffer.alloc(10), 'a.wav') }),
  'images.generate': () => client.images.generate({ model, prompt: 'A river.' }),
  'images.edit': async () =>
    client.images.edit({ model, prompt: 'A river.', image: await toFile(Buffer.alloc(10), 'a.png') }),
  'moderations.create': () => client.moderations.create({ model, input: 'A river.' }),
  'a stream that is aborted': async () => {
    const stream = await client.chat.completions.create(said(LONG, { model: other, stream: true }));
    let chunks = 0;
    for await (const _ of stream) if (++chunks === 2) stream.controller.abort();
    return chunks;
  },
  'a call that lasts too long': () => client.chat.completions.create(said(LONG, { model: other }), { timeout: 200 }),

  'files.create': async () => {
    const line = (n) => JSON.stringify({ custom_id: `${n}`, method: 'POST', url: '/v1/chat/completions', body: said(`${n}`) });
    const lines = [0, 1, 2].map(line);
    kept.content = [...lines, 'oops'].join('\n');
    kept.file = await client.files.create({ file: await toFile(Buffer.from(kept.content), 'in.jsonl'), purpose: 'batch' });
    return kept.file;
  },
  'files.create for no known purpose': async () =>
    client.files.create({ file: await toFile(Buffer.from('x'), 'x.txt'), purpose: 'nope' }),
  'files.retrieve': async () => (await client.files.retrieve(kept.file.id)).filename,
  'files.waitForProcessing': async () => (await client.files.waitForProcessing(kept.file.id)).status,
  'files.list': async () =>
    (await all(client.files.list({ purpose: 'batch', limit: 1 }))).some(({ id }) => id === kept.file.id),
  'files.content': async () => (await (await client.files.content(kept.file.id)).text()) === kept.content,

  'batches.create': async () => {
    kept.batch = await client.batches.create({
      input_file_id: kept.file.id,
      endpoint: '/v1/chat/completions',
      completion_window: '24h',
      metadata: { job: '17' },
    });
    return kept.batch;
  },
  'batches.retrieve until it has ended': async () => {
    kept.done = await until(() => client.batches.retrieve(kept.batch.id), ended);
    const { total, completed, failed } = kept.done.request_counts;
    return [kept.done.status, total, completed, failed];
  },
  "files.content of a batch's output": async () => {
    const text = await (await client.files.content(kept.done.output_file_id)).text();
    const items = text.trim().split('\n').map((line) => JSON.parse(line));
    return items.map(({ custom_id, response }) => [custom_id, response.body.choices[0].message.content]).sort();
  },
  "files.content of a batch's errors": async () => {
    const text = await (await client.files.content(kept.done.error_file_id)).text();
    return JSON.parse(text).error.code;
  },
  'batches.list': async () => (await all(client.batches.list({ limit: 1 }))).some(({ id }) => id === kept.batch.id),
  'batches.cancel': async () => {
    const body = said(LONG, { model: other });
    const line = JSON.stringify({ custom_id: 'slow', method: 'POST', url: '/v1/chat/completions', body });
    const file = await client.files.create({ file: await toFile(Buffer.from(line), 'in.jsonl'), purpose: 'batch' });
    const wish = { input_file_id: file.id, endpoint: '/v1/chat/completions', completion_window: '24h' };
    const { id } = await client.batches.create(wish);
    await until(() => client.batches.retrieve(id), ({ status }) => status === 'in_progress');
    await client.batches.cancel(id);
    return (await until(() => client.batches.retrieve(id), ended)).status;
  },
  'batches.create of an unknown file': () =>
    client.batches.create({
      input_file_id: `file-${'0'.repeat(32)}`,
      endpoint: '/v1/chat/completions',
      completion_window: '24h',
    }),
  'batches.retrieve of an unknown one': () => client.batches.retrieve(`batch_${'0'.repeat(32)}`),
  'files.delete': async () => (await client.files.delete(kept.file.id)).deleted,
  'files.retrieve of a deleted one': () => client.files.retrieve(kept.file.id),

  'responses.create in the background': async () => {
    kept.response = await client.responses.create({ model, input: 'to be or not', background: true });
    return [kept.response.object, kept.response.background];
  },
  'responses.retrieve until it has ended': async () => {
    kept.done = await until(() => client.responses.retrieve(kept.response.id), ended);
    return [kept.done.status, kept.done.output_text];
  },
  'responses.inputItems.list': async () =>
    (await all(client.responses.inputItems.list(kept.response.id))).map(({ role, content }) => [role, content[0].text]),
  'responses.create behind another': async () => {
    const next = await client.responses.create({ model, input: 'that is', previous_response_id: kept.response.id });
    return [next.output_text, next.previous_response_id === kept.response.id];
  },
  'responses.create in the background, streamed': async () => {
    const stream = await client.responses.create({ model, input: 'to be or not', background: true, stream: true });
    for await (const event of stream) {
      kept.streamed = event.response?.id ?? kept.streamed;
      kept.seen = event.sequence_number;
      if (event.type === 'response.output_text.delta') break;
    }
    return kept.seen;
  },
  'responses.retrieve behind what was seen': async () => {
    const rest = { stream: true, starting_after: kept.seen };
    const events = await all(await client.responses.retrieve(kept.streamed, rest));
    return { after: events[0].sequence_number - kept.seen, ...told(events) };
  },
  'responses.stream of one that is known': async () => {
    const stream = client.responses.stream({ response_id: kept.streamed, starting_after: kept.seen });
    return { after: (await all(stream))[0].sequence_number - kept.seen, text: (await stream.finalResponse()).output_text };
  },
  'responses.cancel': async () => {
    const { id } = await client.responses.create({ model: other, input: LONG, background: true });
    return (await client.responses.cancel(id)).status;
  },
  'responses.delete': async () => (await client.responses.delete(kept.response.id)) ?? null,
  'responses.retrieve of a deleted one': () => client.responses.retrieve(kept.response.id),
};

for (const [name, call] of Object.entries({ engine, service }[list])) {
  const line = { name };
  try {
    line.result = await call();
  } catch (error) {
    const { status, code, param, type } = error;
    line.error = { class: error.constructor.name, status, code, param, type };
    if (!(error instanceof APIError)) line.error.message = error.stack;
  }
  console.log(JSON.stringify(line));
}
