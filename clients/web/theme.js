// Light, dark, or what the system says.

import { changeSettings, get } from "./store.js";

const dark = matchMedia("(prefers-color-scheme: dark)");

/** @param {import("./settings.js").Settings["theme"]} theme */
export function showTheme(theme) {
  const shown = theme === "auto" ? (dark.matches ? "dark" : "light") : theme;
  document.documentElement.dataset.theme = shown;
}

dark.addEventListener("change", () => showTheme(get().settings.theme));

/** Change between light and dark; the system's own choice is kept as "auto". */
export function toggleTheme() {
  const shown = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  const system = dark.matches ? "dark" : "light";
  changeSettings({ theme: shown === system ? "auto" : shown });
  showTheme(get().settings.theme);
}
