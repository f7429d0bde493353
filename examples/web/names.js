// Class names as they are typed, to tokens and to a vocabulary as FGASeg.encode makes it.

const READER = "./node_modules/@huggingface/tokenizers/dist/tokenizers.min.mjs";

/** Prompts to token ids, by tokenizer.json. Its patterns are written for another engine of regular expressions. */
export async function tokenizerOf(file, length) {
  const { Tokenizer } = await import(READER).catch(() => {
    throw new Error("node_modules/@huggingface/tokenizers: is not here: run `npm install` in the folder of this page");
  });
  const translated = (key, value) =>
    key === "Regex" ? value.replaceAll("\\x{", "\\u{").replace(/^(.*)\\K/, "(?<=$1)") : value;
  const content = JSON.parse(file, translated);
  if (content.model.end_of_word_suffix !== "</w>") {
    throw new Error(
      "tokenizer.json: this page knows CLIP's tokenizer only: prepare the names, `fgaseg export --names`",
    );
  }
  const tokenizer = new Tokenizer(content, {});
  return (prompt) => {
    const { ids } = tokenizer.encode(prompt);
    if (ids.length > length) {
      throw new Error(`class names: "${prompt}" has ${ids.length} tokens; the model reads ${length}: shorten it`);
    }
    return [...ids, ...Array(length - ids.length).fill(content.padding.pad_id)];
  };
}

/** What a prompt puts into the template: without invisible signs, underscores as spaces. */
function subject(name) {
  return name
    .replace(/[\u200b\u2060\ufeff\u00ad]/g, "")
    .replaceAll("_", " ")
    .trim()
    .replace(/\s+/g, " ");
}

/** Classes of a text with commas or new lines between them, and | between synonyms; first: the class that gets the
 * pixels of each one, the first of those with the same prompt. tokens [prompts][templates][length] */
export function plan(text, { templates, synonyms }, tokenize) {
  const classes = text
    .split(/[,\n]/)
    .map((entry) => entry.split("|").map(subject).filter(Boolean))
    .filter((prompts) => prompts.length);
  if (!classes.length) throw new Error("class names: there are none: type at least one");
  if (synonyms === "average" && classes.some((prompts) => prompts.length > 1)) {
    throw new Error("class names: this model averages synonyms, which this page does not: leave out what follows |");
  }
  const [owner, found] = [new Map(), { names: [], counts: [], first: [], tokens: [], background: null }];
  classes.forEach((prompts, k) => {
    const rows = prompts.map((prompt) => templates.map((template) => tokenize(template.replace("{}", () => prompt))));
    const owned = rows.filter((row) => {
      if (!owner.has(`${row}`)) owner.set(`${row}`, k);
      return owner.get(`${row}`) === k;
    });
    const kept = owned.length ? owned : rows.slice(0, 1);
    found.names.push(prompts[0]);
    found.first.push(owned.length ? k : owner.get(`${rows[0]}`));
    found.counts.push(kept.length);
    found.tokens.push(...kept);
  });
  return found;
}

/** Embeddings of unit length [prompts, channels]: the mean over the templates, from those of all of them, one prompt
 * after the other. */
export function average(embeddings, prompts, templates) {
  const channels = embeddings.length / (prompts * templates);
  const mean = new Float32Array(prompts * channels);
  for (let i = 0; i < prompts; i++) {
    const row = mean.subarray(i * channels, (i + 1) * channels);
    for (let t = 0; t < templates; t++) {
      for (let c = 0; c < channels; c++) row[c] += embeddings[(i * templates + t) * channels + c] / templates;
    }
    const length = Math.hypot(...row);
    for (let c = 0; c < channels; c++) row[c] /= length;
  }
  return mean;
}
