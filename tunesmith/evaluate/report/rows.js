// All rows of a result, from the JSON block beside them: searched, filtered, sorted and shown a page at a time.
// Texts are set as text, never as HTML.
(function () {
  "use strict";
  const PAGE = 25;
  const SAME = 1e-9;

  document.querySelectorAll("[data-rows]").forEach(start);
  document.dispatchEvent(new Event("languagechanged"));

  function start(section) {
    const data = JSON.parse(section.querySelector("script").textContent);
    const paired = data.rows[0].answers.length === 2;
    data.rows.forEach((row, at) => { row.at = at; });
    const state = { search: "", show: "all", measure: data.primary, sort: "file", page: 0 };
    const groups = data.groups.map(() => "");
    const tools = section.querySelector(".tools");
    const refresh = () => { state.page = 0; draw(); };
    const set = (name) => (event) => { state[name] = event.target.value; refresh(); };

    tools.append(field("search", "Search", "搜索", searchBox(set("search"))));
    tools.append(field("", "Show", "筛选", list(shown(data, paired), set("show"))));
    if (data.measures.length) {
      const names = data.measures.map((measure, at) => [String(at), measure.name, measure.name]);
      const by = list(names, set("measure"));
      by.value = String(data.primary);
      tools.append(field("", "by", "依据", by));
    }
    tools.append(field("", "Order", "排序", list(orders(data, paired), set("sort"))));
    data.groups.forEach((column, at) => {
      const values = [...new Set(data.rows.map((row) => row.groups[at]))].sort();
      const choices = [["", "all", "全部"], ...values.map((value) => [at + "=" + value, value, value])];
      tools.append(field("", column, column, list(choices, (event) => {
        groups[at] = event.target.value;
        refresh();
      })));
    });
    const pages = section.querySelector(".pages");
    const back = button("← Back", "← 上一页", () => turn(-1));
    const next = button("Next →", "下一页 →", () => turn(1));
    const where = document.createElement("span");
    pages.append(back, where, next);
    tools.hidden = false;
    section.querySelector(".unscripted")?.remove();
    draw();

    function turn(by) {
      state.page += by;
      draw();
      section.querySelector("h3").scrollIntoView();
    }

    function draw() {
      const words = plain(state.search).split(/\s+/).filter(Boolean);
      const measure = Number(state.measure);
      const found = data.rows.filter((row) => fits(row, measure) && words.every((word) => hay(row).includes(word)));
      if (state.sort !== "file") {
        found.sort(by(measure, state.sort));
      }
      const last = Math.max(0, Math.ceil(found.length / PAGE) - 1);
      state.page = Math.min(state.page, last);
      const first = state.page * PAGE;
      const few = found.slice(first, first + PAGE);
      section.querySelector(".list").replaceChildren(...few.map((row) => card(row, data, measure, words)));
      const range = few.length ? (first + 1) + "–" + (first + few.length) : "0";
      section.querySelector(".status").replaceChildren(both(
        `Rows ${range} of ${found.length.toLocaleString("en")}` + (found.length < data.rows.length ? ` (${data.rows.length.toLocaleString("en")} in all)` : ""),
        `第 ${range} 行，共 ${found.length.toLocaleString("en")} 行` + (found.length < data.rows.length ? `（全部 ${data.rows.length.toLocaleString("en")} 行）` : "")
      ));
      pages.hidden = last === 0;
      back.disabled = state.page === 0;
      next.disabled = state.page === last;
      where.textContent = (state.page + 1) + " / " + (last + 1);
    }

    function fits(row, measure) {
      if (groups.some((wanted, at) => wanted && wanted !== at + "=" + row.groups[at])) {
        return false;
      }
      const answers = row.answers.length - 1;
      switch (state.show) {
        case "empty": return row.answers.some((text, at) => !text[0].trim() && row.failed[at] === null);
        case "failed": return hasFailed(row);
        case "cut": return row.cut[answers];
        case "better": return gain(row, measure) > SAME;
        case "worse": return gain(row, measure) < -SAME;
        case "same": return Math.abs(change(row, measure)) <= SAME;
        case "identical": return row.answers[0][0] === row.answers[1][0];
        default: return true;
      }
    }

    function change(row, measure) {
      const score = row.scores[measure];
      return !score || score.some((value) => value === null) ? NaN : score[score.length - 1] - (paired ? score[0] : 0);
    }

    // Above zero where the row is better (or, where neither way is better, higher).
    function gain(row, measure) {
      return (data.measures[measure].better === "lower" ? -1 : 1) * change(row, measure);
    }

    function by(measure, order) {
      const value = order === "short" || order === "long"
        ? (row) => length(row)
        : (row) => (paired ? gain(row, measure) : change(row, measure));
      const sign = order === "down" || order === "long" ? -1 : 1;
      return (x, y) => {
        const difference = sign * (value(x) - value(y));
        // Rows without a number come last, whichever way is asked.
        return Number.isNaN(difference) ? Number.isNaN(value(x)) - Number.isNaN(value(y)) || x.at - y.at : difference || x.at - y.at;
      };
    }
  }

  function length(row) {
    const text = row.answers[row.answers.length - 1];
    return text[0].length + text[1];
  }

  function hasFailed(row) {
    return row.failed.some((why) => why !== null);
  }

  function shown(data, paired) {
    const measured = data.measures.length > 0;
    return [
      ["all", "all rows", "全部"],
      ...(paired && measured ? [["better", "better", "更好"], ["worse", "worse", "更差"], ["same", "the same score", "得分相同"]] : []),
      ...(paired ? [["identical", "the same answer", "回答相同"]] : []),
      ["empty", "an empty answer", "有空回答"],
      ["cut", "cut at the limit", "因长度上限中断"],
      ...(data.rows.some(hasFailed) ? [["failed", "no answer, the call failed", "没有回答：调用失败"]] : []),
    ];
  }

  function orders(data, paired) {
    const scores = paired
      ? [["up", "most worse first", "变差最多在前"], ["down", "most better first", "变好最多在前"]]
      : [["up", "lowest first", "从低到高"], ["down", "highest first", "从高到低"]];
    return [
      ["file", "as in the file", "文件顺序"],
      ...(data.measures.length ? scores : []),
      ["short", "shortest answer first", "回答最短在前"],
      ["long", "longest answer first", "回答最长在前"],
    ];
  }

  function plain(text) {
    return text.normalize("NFKC").toLowerCase();
  }

  function hay(row) {
    if (row.hay === undefined) {
      const texts = [row.prompt, ...row.references, ...row.answers].map((text) => text[0]);
      row.hay = plain([row.id, ...row.groups, ...texts, row.choices].join("\n"));
    }
    return row.hay;
  }

  function card(row, data, measure, words) {
    const paired = row.answers.length === 2;
    const made = element("div", "answer");
    const head = element("div", "row-head");
    head.append(element("span", "id", row.id || "#" + (row.at + 1)));
    row.groups.forEach((value, at) => head.append(element("span", "", data.groups[at] + " = " + value)));
    const scores = data.measures.map((one, at) => score(one, row.scores[at], paired));
    if (scores.length) {
      head.append(...scores[measure]);
      scores[measure] = [];
      if (scores.some((parts) => parts.length)) {
        head.append(more(scores.flat()));
      }
    }
    const texts = element("dl");
    line(texts, both("prompt", "提示"), row.prompt, words, "text");
    row.answers.forEach((text, at) => {
      const name = paired ? document.createTextNode(data.letters[at]) : both("answer", "回答");
      const told = line(texts, name, text, words, at === row.answers.length - 1 ? "text after" : "text", row.failed[at]);
      if (row.cut[at]) {
        told.append(" ", flag("cut at the limit", "因长度上限中断"));
      }
    });
    if (row.choices) {
      line(texts, both("choices, log-likelihood", "选项与对数似然"), [row.choices, 0], words, "text");
    }
    row.references.forEach((text) => line(texts, both("reference", "参考"), text, words, "text"));
    made.append(head, texts);
    return made;
  }

  function score(measure, values, paired) {
    if (!values || values.some((value) => value === null)) {
      return [];
    }
    const last = values[values.length - 1];
    const made = element("span", "", measure.name + " ");
    if (!paired) {
      made.append(digits(last));
      return [made];
    }
    const change = last - values[0];
    made.append(digits(values[0]) + " → " + digits(last));
    if (Math.abs(change) > SAME) {
      const good = measure.better === "neither" ? "" : (change > 0) === (measure.better === "higher") ? "up" : "down";
      made.append(" ", element("span", good, "(" + (change > 0 ? "+" : "−") + digits(Math.abs(change)) + ")"));
    }
    return [made];
  }

  function more(parts) {
    const made = element("details");
    const name = element("summary");
    name.append(both("all scores", "全部得分"));
    made.append(name, ...parts);
    return made;
  }

  function digits(value) {
    return (Number.isInteger(value) ? String(value) : value.toFixed(3)).replace("-", "−");
  }

  function line(texts, name, text, words, style, failed = null) {
    const label = element("dt");
    label.append(name);
    const told = element("dd", style);
    if (failed !== null) {
      const none = element("span", "empty");
      none.append(both("no answer, the call failed", "没有回答：调用失败"));
      told.append(none, " " + failed);
    } else if (text[0].trim()) {
      told.append(...marked(text[0], words));
    } else {
      const empty = element("span", "empty");
      empty.append(both("empty", "空"));
      told.append(empty);
    }
    if (text[1]) {
      const more = element("span", "more");
      more.append(both(` … ${text[1].toLocaleString("en")} more characters`, ` ……另有 ${text[1].toLocaleString("en")} 个字符`));
      told.append(more);
    }
    texts.append(label, told);
    return told;
  }

  // The text with what was searched for marked, where its plain form is as long as itself.
  function marked(text, words) {
    const low = plain(text);
    if (!words.length || low.length !== text.length) {
      return [text];
    }
    const parts = [];
    let at = 0;
    while (at < text.length) {
      const hits = words.map((word) => [low.indexOf(word, at), word.length]).filter(([place]) => place >= 0);
      if (!hits.length) {
        break;
      }
      const [place, size] = hits.reduce((one, other) => (other[0] < one[0] ? other : one));
      parts.push(text.slice(at, place), element("mark", "", text.slice(place, place + size)));
      at = place + size;
    }
    parts.push(text.slice(at));
    return parts;
  }

  function searchBox(changed) {
    const input = element("input");
    input.type = "search";
    input.dataset.en = "words, 文字";
    input.dataset.zh = "文字，words";
    input.addEventListener("input", changed);
    return input;
  }

  function list(choices, changed) {
    const select = element("select");
    choices.forEach(([value, en, zh]) => {
      const option = element("option", "", en);
      option.value = value;
      option.dataset.en = en;
      option.dataset.zh = zh;
      select.append(option);
    });
    select.addEventListener("change", changed);
    return select;
  }

  function field(style, en, zh, control) {
    const label = element("label", style);
    label.append(both(en, zh), control);
    return label;
  }

  function button(en, zh, pressed) {
    const made = element("button");
    made.type = "button";
    made.append(both(en, zh));
    made.addEventListener("click", pressed);
    return made;
  }

  function flag(en, zh) {
    const made = element("span", "flag");
    made.append(both(en, zh));
    return made;
  }

  function both(en, zh) {
    const parts = document.createDocumentFragment();
    [["en", en], ["zh", zh]].forEach(([language, text]) => {
      const made = element("span", language, text);
      made.lang = language;
      parts.append(made);
    });
    return parts;
  }

  function element(name, style, text) {
    const made = document.createElement(name);
    if (style) {
      made.className = style;
    }
    if (text !== undefined) {
      made.textContent = text;
    }
    return made;
  }
})();
