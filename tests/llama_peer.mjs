// A real llama.cpp behind one JSON question: node llama_peer.mjs question.json answer.json
// Needs `npm install node-llama-cpp` in a folder; NODE_LLAMA_CPP names that folder.
//
// question: model, lora (path or null), texts (string[]), prompts (int[][]), forced (int[][]), count
// answer:   ids (int[][], of texts), greedy (int[][], count tokens after each prompt),
//           choices (int[][]: the greedy choice at each place of forced[i], fed after prompts[i])
import {createRequire} from "node:module";
import {readFileSync, writeFileSync} from "node:fs";
import {join} from "node:path";
import {pathToFileURL} from "node:url";

const require = createRequire(join(process.env.NODE_LLAMA_CPP ?? ".", "package.json"));
const {getLlama, LlamaLogLevel} = await import(pathToFileURL(require.resolve("node-llama-cpp")));
const question = JSON.parse(readFileSync(process.argv[2], "utf8"));

const llama = await getLlama({gpu: false, build: "never", logLevel: LlamaLogLevel.error, maxThreads: 1});
const model = await llama.loadModel({modelPath: question.model});
const context = await model.createContext({
    contextSize: 2048,
    flashAttention: false,
    ...(question.lora ? {lora: question.lora} : {})
});
const sequence = context.getSequence();

const ids = question.texts.map((text) => Array.from(model.tokenize(text, true)));
const greedy = [];
const choices = [];
for (let row = 0; row < question.prompts.length; row++) {
    const prompt = question.prompts[row];
    const answer = [];
    await sequence.clearHistory();
    if (question.count > 0) {
        for await (const token of sequence.evaluate(prompt, {temperature: 0, yieldEogToken: true})) {
            answer.push(token);
            if (model.isEogToken(token) || answer.length >= question.count) break;
        }
    }
    greedy.push(answer);
    const forced = question.forced?.[row];
    if (forced == null) continue;
    await sequence.clearHistory();
    const fed = [...prompt, ...forced.slice(0, -1)];
    const ask = {generateNext: {token: true, options: {temperature: 0}}};
    const out = await sequence.controlledEvaluate(
        fed.map((token, place) => (place >= prompt.length - 1 ? [token, ask] : token))
    );
    choices.push(out.slice(prompt.length - 1).map((one) => one.next.token));
}
writeFileSync(process.argv[3], JSON.stringify({ids, greedy, choices}));
await llama.dispose();
