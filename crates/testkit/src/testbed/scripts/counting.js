// counting.js FILE: counts in a timer, a line on standard output and in FILE for each number; a worker thread and a child process
// count on their own, and HTTP on port 8080 is answered with KEY=VALUE lines. Its token is nowhere but in memory.
'use strict';
const { fork } = require('node:child_process');
const crypto = require('node:crypto');
const fs = require('node:fs');
const http = require('node:http');
const { Worker, isMainThread, parentPort } = require('node:worker_threads');

let counted = 0;
if (!isMainThread) {
    setInterval(() => parentPort.postMessage(++counted), 20);
} else if (process.argv[2] === 'child') {
    setInterval(() => process.send(++counted), 20);
} else {
    const token = crypto.randomBytes(16).toString('hex');
    const file = fs.openSync(process.argv[2], 'a');
    const heard = { worker: 0, child: 0, missed: 0 };
    const hear = (from) => (number) => {
        if (number !== heard[from] + 1) heard.missed += 1;
        heard[from] = number;
    };
    new Worker(__filename).on('message', hear('worker'));
    const child = fork(__filename, ['child']).on('message', hear('child'));
    let ticks = 0;
    setInterval(() => { ticks += 1; }, 10);
    setInterval(() => {
        counted += 1;
        console.log(counted);
        // In the pool of threads.
        fs.write(file, `${counted}\n`, (error) => { if (error) throw error; });
    }, 50);
    http.createServer((_, response) => {
        const facts = { token, counted, ticks, ...heard, pid: process.pid, childPid: child.pid };
        response.setHeader('Connection', 'close');
        response.end(Object.entries(facts).map(([key, value]) => `${key}=${value}\n`).join(''));
    }).listen(8080);
}
