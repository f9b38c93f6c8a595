// Puts the page together: waits for the model, then chat, burst and engine go their ways.

import { call, setKey } from "./api.js";
import { Burst } from "./burst.js";
import { Chat } from "./chat.js";
import { Engine } from "./engine.js";

const $ = (id) => document.getElementById(id);
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

let asking = null;  // one question at a time, whoever needs the key
function askForKey() {
  asking ??= new Promise((resolve) => {
    $("key-form").hidden = false;
    $("key").focus();
    $("key-form").addEventListener("submit", (event) => {
      event.preventDefault();
      setKey($("key").value);
      $("key-form").hidden = true;
      asking = null;
      resolve();
    }, { once: true });
  });
  return asking;
}

async function findModel() {
  for (;;) {
    try {
      return (await (await call("v1/models")).json()).data[0];
    } catch (error) {
      if (error.status === 401) await askForKey();
      else await pause(1000);
    }
  }
}

const mine = new Set();
const chat = new Chat(mine), burst = new Burst(), engine = new Engine(mine, askForKey);
engine.listen();
const model = await findModel();
$("model").textContent = `${model.id}${model.weights === "random" ? ", random weights: the speed is real, the text has no meaning" : ""}`;
chat.begin(model);
burst.begin(model);
