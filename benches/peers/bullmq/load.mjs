// BullMQ: addBulk in chunks; 4 workers with connections of their own, in some processes, each with a
// concurrency. Jobs that are completed are removed. Prints the times as one JSON object.
//
//   node load.mjs --url redis://127.0.0.1:6379 --tasks 20000 [--mode overlapped|phased]
//        [--processes 2] [--concurrency 100] [--chunk 1000] [--inflight 4]
import { fork } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { Queue, Worker } from 'bullmq';

const WORKERS = 4;
const PAYLOAD = 100;
const QUEUE = 'tasks';
// How often a process of workers tells how far it is: it moves the end of the clock by no more than this.
const TELL_EVERY_MS = 5;

const { values } = parseArgs({
  options: {
    url: { type: 'string' },
    tasks: { type: 'string', default: '20000' },
    mode: { type: 'string', default: 'overlapped' },
    processes: { type: 'string', default: '2' },
    concurrency: { type: 'string', default: '100' },
    chunk: { type: 'string', default: '1000' },
    inflight: { type: 'string', default: '4' },
    role: { type: 'string', default: 'client' },
  },
});
const [tasks, processes, concurrency, chunk, inflight] = ['tasks', 'processes', 'concurrency', 'chunk', 'inflight'].map(
  (name) => Number(values[name]),
);
const { hostname: host, port } = new URL(values.url);
const connection = () => ({ host, port: Number(port), maxRetriesPerRequest: null });

await (values.role === 'workers' ? work() : drive());

// One process of workers.
async function work() {
  let done = 0;
  let told = 0;
  const workers = [];
  for (let k = 0; k < WORKERS / processes; k++) {
    const worker = new Worker(QUEUE, async () => {}, { connection: connection(), concurrency, autorun: false });
    // 'completed' comes when Redis has answered that the job is done.
    worker.on('completed', () => done++);
    worker.on('error', (error) => console.error(error));
    await worker.waitUntilReady();
    workers.push(worker);
  }
  setInterval(() => {
    if (done !== told) process.send({ done: (told = done) });
  }, TELL_EVERY_MS);
  process.on('message', async (word) => {
    if (word === 'start') {
      for (const worker of workers) worker.run().catch(fail);
    } else {
      await Promise.all(workers.map((worker) => worker.close(true)));
      process.exit(0);
    }
  });
  process.send({ ready: true });
}

// The client: starts the workers, puts the jobs in, waits for the last.
async function drive() {
  const queue = new Queue(QUEUE, { connection: connection() });
  await queue.waitUntilReady();
  const done = new Array(processes).fill(0);
  let finish;
  const finished = new Promise((resolve) => (finish = resolve));
  const children = [];
  for (let k = 0; k < processes; k++) {
    const child = fork(fileURLToPath(import.meta.url), [...process.argv.slice(2), '--role', 'workers']);
    child.on('exit', (code) => code && fail(new Error(`a process of workers ended with ${code}`)));
    children.push(child);
    await new Promise((ready) =>
      child.on('message', (word) => {
        if (word.ready) ready();
        if (word.done) done[k] = word.done;
        if (done.reduce((a, b) => a + b) >= tasks) finish(performance.now());
      }),
    );
  }
  const start = () => children.forEach((child) => child.send('start'));
  if (values.mode === 'overlapped') start();
  // BullMQ keeps JSON, so payloads are text: the number, then characters cut from a pool at random places.
  const pool = randomBytes(49152).toString('base64');
  const payload = (number) => {
    const at = (number * 7919) % (pool.length - PAYLOAD);
    return number.toString(36).padStart(8, '0') + pool.slice(at, at + PAYLOAD - 8);
  };
  const begin = performance.now();
  const pending = new Set();
  for (let first = 0; first < tasks; first += chunk) {
    const jobs = [];
    for (let number = first; number < Math.min(tasks, first + chunk); number++) {
      jobs.push({ name: 't', data: payload(number), opts: { removeOnComplete: true } });
    }
    const added = queue.addBulk(jobs).then(() => pending.delete(added));
    pending.add(added);
    if (pending.size >= inflight) await Promise.race(pending);
  }
  await Promise.all(pending);
  const put = performance.now();
  if (values.mode === 'phased') start();
  const end = await finished;
  const left = await queue.getJobCounts('waiting', 'active', 'failed');
  const sum = left.waiting + left.active + left.failed;
  if (sum !== 0) fail(new Error(`the server still holds ${sum} tasks`));
  console.log(JSON.stringify({ tasks, put_s: seconds(put - begin), whole_s: seconds(end - begin) }));
  await queue.close();
  await Promise.all(
    children.map(
      (child) =>
        new Promise((ended) => {
          child.on('exit', ended);
          child.send('stop');
        }),
    ),
  );
  process.exit(0);
}

function seconds(ms) {
  return Math.round(ms * 10) / 1e4;
}

function fail(error) {
  console.error(error);
  process.exit(1);
}
