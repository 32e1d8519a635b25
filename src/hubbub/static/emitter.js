// Something that tells others what happens to it.

export class Emitter {
  #listeners = new Map(); // type → Set of functions

  /** Call `listener(...details)` whenever `type` is told. Returns a function that ends it. */
  on(type, listener) {
    if (!this.#listeners.has(type)) this.#listeners.set(type, new Set());
    this.#listeners.get(type).add(listener);
    return () => this.#listeners.get(type)?.delete(listener);
  }

  emit(type, ...details) {
    for (const listener of [...(this.#listeners.get(type) ?? [])]) listener(...details);
  }
}
