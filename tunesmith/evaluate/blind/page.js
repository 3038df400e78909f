// The rater's page, from a file or from the local server: only `store` differs. Every text of a test is set as
// text, never as HTML. The page knows left and right, and nothing else about who wrote what.
"use strict";

const WORDS = {
  en: {
    welcome: "Which answer is better?",
    how: "You will see a prompt and two answers to it, side by side. Say which one is better, or that neither is.",
    blind: "Who wrote which isn't said, and changes from one to the next. Some come again: that is meant.",
    here: "Your choices stay in this browser until you save them as a file. You can stop and come back.",
    forgets: "This browser keeps nothing: please finish in one go, and save the file.",
    server: "Each choice is saved at once. You can stop and come back under the same name.",
    name: "Your name",
    begin: "Begin",
    keys: "Keys: 1 the left one, 2 the right one, 0 neither, Backspace one step back.",
    prompt: "Prompt",
    reference: "Reference answer",
    left: "Left",
    right: "Right",
    left_better: "Left",
    right_better: "Right",
    tie: "Neither",
    back: "Back",
    empty: "(empty)",
    thanks: "That was all. Thank you!",
    finished_file: "Save your choices as a file and send it back to whom you had this page from.",
    finished_server: "All your choices are saved. You may close this page.",
    save: "Save my choices",
    save_early: "Save what I have so far",
    other: "Another person",
    unsaved: "That choice isn't saved: the program on this computer doesn't answer. Choose again; if that doesn't help, start it again and open its new link.",
    refused: "That choice isn't saved: open the link that the program shows.",
    closed: "The test has been closed: no more choices are taken.",
  },
  zh: {
    welcome: "哪个回答更好？",
    how: "每次会显示一个提示和两个回答，并排放置。请选出更好的一个，或选择不分上下。",
    blind: "不会告诉您回答出自谁，左右位置每次随机。有些题目会再次出现，这是有意的。",
    here: "您的选择保存在本浏览器中，最后存为文件。可以中途停下，以后继续。",
    forgets: "本浏览器无法保存进度：请一次做完，并保存文件。",
    server: "每次选择都会立即保存。可以中途停下，以后用同一个名字继续。",
    name: "您的名字",
    begin: "开始",
    keys: "按键：1 左边更好，2 右边更好，0 不分上下，退格键返回上一题。",
    prompt: "提示",
    reference: "参考答案",
    left: "左",
    right: "右",
    left_better: "左边更好",
    right_better: "右边更好",
    tie: "不分上下",
    back: "返回",
    empty: "（空）",
    thanks: "全部完成，谢谢！",
    finished_file: "请把您的选择存为文件，发回给提供此页的人。",
    finished_server: "您的选择已全部保存，可以关闭此页。",
    save: "保存我的选择",
    save_early: "保存目前的选择",
    other: "换一个人",
    unsaved: "这次选择没有保存：本机的程序没有回应。请再选一次；若仍不行，请重新启动程序并打开新的链接。",
    refused: "这次选择没有保存：请打开程序显示的链接。",
    closed: "测试已结束，不再接受选择。",
  },
};
const test = JSON.parse(document.getElementById("test").textContent);
const get = (id) => document.getElementById(id);
const state = { rater: null, choices: new Map(), busy: false, problem: "", language: "en" };

// ---- where choices are kept ----

function browserStore() {
  const place = (name) => "tunesmith-blind:" + test.test + ":" + name;
  let works = true;
  let session = "";
  const read = (name) => {
    try {
      return JSON.parse(localStorage.getItem(place(name)) || "null");
    } catch {
      works = false;
      return null;
    }
  };
  read("");
  const times = new Map();
  return {
    note: () => (works ? "here" : "forgets"),
    finished: "finished_file",
    async open(name) {
      const kept = read(name) || { session: hex(8), ratings: [] };
      session = kept.session;
      times.clear();
      kept.ratings.forEach((rating) => times.set(rating.item, rating.at));
      return kept.ratings;
    },
    async set(item, choice) {
      times.set(item, new Date().toISOString());
      const choices = new Map(state.choices);
      if (choice === null) choices.delete(item);
      else choices.set(item, choice);
      try {
        localStorage.setItem(place(state.rater), JSON.stringify({ session, ratings: listed(choices, times) }));
      } catch {
        works = false;
      }
    },
    save() {
      const content = { kind: "tunesmith blind ratings", test: test.test, rater: state.rater, session };
      content.ratings = listed(state.choices, times);
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([JSON.stringify(content, null, 1)], { type: "application/json" }));
      link.download = "ratings-" + state.rater.replace(/[^\p{L}\p{N}-]+/gu, "_") + ".json";
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    },
  };
}

function serverStore() {
  const ask = async (path, body) => {
    let answer;
    try {
      const headers = { "Content-Type": "application/json" };
      answer = await fetch(path, { method: "POST", headers, body: JSON.stringify(body) });
    } catch {
      throw new Error("unsaved");
    }
    if (answer.status === 410) throw new Error("closed");
    if (answer.status === 401 || answer.status === 403) throw new Error("refused");
    if (!answer.ok) throw new Error("unsaved");
    return answer;
  };
  return {
    note: () => "server",
    finished: "finished_server",
    open: async (name) => (await (await ask("/ratings", { rater: name })).json()).ratings,
    set: async (item, choice) => void (await ask("/rate", { rater: state.rater, item, choice })),
    save: null,
  };
}

const hex = (bytes) =>
  [...crypto.getRandomValues(new Uint8Array(bytes))].map((b) => b.toString(16).padStart(2, "0")).join("");
const listed = (choices, times) => [...choices].map(([item, choice]) => ({ item, choice, at: times.get(item) }));
const store = test.server ? serverStore() : browserStore();

// ---- what is shown ----

const word = (name) => WORDS[state.language][name];
const due = () => test.items.find((item) => !state.choices.has(item.id));

function show(part) {
  ["start", "rate", "done"].forEach((id) => (get(id).hidden = id !== part));
  get("early").hidden = part !== "rate" || !store.save || !state.choices.size;
}

function draw() {
  document.documentElement.lang = state.language === "zh" ? "zh-CN" : "en";
  document.querySelectorAll("[data-word]").forEach((part) => (part.textContent = word(part.dataset.word)));
  document.querySelectorAll("[data-language]").forEach((button) => {
    button.setAttribute("aria-pressed", String(button.dataset.language === state.language));
  });
  get("kept").textContent = word(store.note());
  get("finished").textContent = word(store.finished);
  get("save").hidden = !store.save;
  get("ask").textContent = test.ask || word("welcome");
  get("problem").textContent = state.problem && word(state.problem);
  get("problem").hidden = !state.problem;
  document.querySelectorAll(".back").forEach((button) => (button.disabled = !state.choices.size));
  const item = due();
  if (state.rater === null) return show("start");
  get("bar").max = test.items.length;
  get("bar").value = state.choices.size;
  get("count").textContent = state.choices.size + " / " + test.items.length;
  if (!item) return show("done");
  fill(get("prompt"), item.prompt);
  fill(get("left"), item.left);
  fill(get("right"), item.right);
  const references = item.references || [];
  get("reference").hidden = !references.length;
  fill(get("reference").querySelector(".text"), references.join("\n\n"));
  show("rate");
}

function fill(part, text) {
  const empty = !text.trim();
  part.textContent = empty ? word("empty") : text;
  part.classList.toggle("empty", empty);
  part.classList.toggle("code", /```|^( {4}|\t)\S/m.test(text));
}

// ---- what a rater does ----

async function attempt(work) {
  if (state.busy) return;
  state.busy = true;
  try {
    await work();
    state.problem = "";
  } catch (error) {
    if (!(error.message in WORDS.en)) throw error;
    state.problem = error.message;
  } finally {
    state.busy = false;
    draw();
  }
}

async function choose(choice) {
  const item = due();
  if (state.rater === null || !item) return;
  await attempt(async () => {
    await store.set(item.id, choice);
    state.choices.set(item.id, choice);
    scrollTo(0, 0);
  });
}

async function back() {
  const last = [...test.items].reverse().find((item) => state.choices.has(item.id));
  if (state.rater === null || !last) return;
  await attempt(async () => {
    await store.set(last.id, null);
    state.choices.delete(last.id);
    scrollTo(0, 0);
  });
}

get("who").addEventListener("submit", (event) => {
  event.preventDefault();
  const name = get("name").value.normalize("NFC").trim().replace(/\s+/g, " ");
  if (!name) return;
  attempt(async () => {
    const ratings = await store.open(name);
    state.choices = new Map(ratings.map((rating) => [rating.item, rating.choice]));
    state.rater = name;
    get("name").blur();
  });
});
document.querySelectorAll("[data-choice]").forEach((button) => {
  button.addEventListener("click", () => choose(button.dataset.choice));
});
document.querySelectorAll(".back").forEach((button) => button.addEventListener("click", back));
document.querySelectorAll("[data-language]").forEach((button) => {
  button.addEventListener("click", () => {
    state.language = button.dataset.language;
    draw();
  });
});
[get("save"), get("save_early")].forEach((button) => button.addEventListener("click", () => store.save()));
get("other").addEventListener("click", () => {
  state.rater = null;
  state.choices = new Map();
  get("name").value = "";
  draw();
  get("name").focus();
});
document.addEventListener("keydown", (event) => {
  // A key that is held down would rate what nobody has read.
  if (state.rater === null || event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
  const digit = /^(?:Digit|Numpad)([012])$/.exec(event.code);
  const choice = { 0: "tie", 1: "left", 2: "right" }[digit ? digit[1] : event.key];
  if (choice) choose(choice);
  else if (event.key === "Backspace") back();
  else return;
  event.preventDefault();
});

// The link's key isn't left in the address, where a screenshot or the history would show it.
if (test.server && location.search) history.replaceState(null, "", "/");
state.language = (navigator.language || "en").toLowerCase().startsWith("zh") ? "zh" : "en";
draw();
get("name").focus();
