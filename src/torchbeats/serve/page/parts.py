"""Pieces of HTML that the page is made of. All text from outside passes through `html.escape`."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import NamedTuple

from torchbeats.files import one_line, readable

STYLE = """
.tb-grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: .8rem; }
.tb-card { border: 1px solid var(--border-color-primary); border-radius: 8px; padding: .6rem; min-width: 0;
  background: var(--block-background-fill); color: var(--body-text-color); }
.tb-card:focus { outline: 3px solid var(--color-accent); outline-offset: 1px; }
.tb-card img { width: 100%; height: 7rem; border-radius: 4px; }
.tb-card audio { width: 100%; height: 2.2rem; margin: .3rem 0; }
.tb-card p { margin: .2rem 0; overflow-wrap: anywhere; font-size: .9rem; }
.tb-card button { border: 1px solid var(--border-color-primary); border-radius: 6px; padding: .3rem .7rem;
  margin-right: .3rem;
  background: var(--button-secondary-background-fill); color: var(--button-secondary-text-color); cursor: pointer; }
.tb-card button[aria-pressed=true] { background: var(--color-accent); color: white; }
.tb-card button:focus-visible, .tb-links a:focus-visible { outline: 3px solid var(--color-accent); }
.tb-table { border-collapse: collapse; width: 100%; color: var(--body-text-color); }
.tb-scroll { overflow: auto; max-height: 24rem; }
.tb-table th, .tb-table td { border-bottom: 1px solid var(--border-color-primary); padding: .25rem .6rem;
  text-align: left; }
.tb-table td.number, .tb-table th.number { text-align: right; font-variant-numeric: tabular-nums; }
.tb-links { display: flex; flex-wrap: wrap; gap: .6rem; margin: .6rem 0; padding: 0; list-style: none; }
.tb-links a { border: 1px solid var(--border-color-primary); border-radius: 6px; padding: .3rem .8rem;
  color: var(--body-text-color); text-decoration: underline; }
.tb-picture { width: 100%; height: auto; border-radius: 6px; }
.tb-error { border-left: 4px solid #c62828; padding: .4rem .8rem; color: var(--body-text-color); }
.tb-note { color: var(--body-text-color); }
footer { display: none !important; }
"""

# Buttons tell the server what is pressed; on a card y and n press its two buttons, and arrows go to its neighbours.
BEHAVIOUR = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-mark]');
  if (button) trigger('mark', { row: Number(button.dataset.row), mark: button.dataset.mark });
});
element.addEventListener('keydown', (event) => {
  const card = event.target.closest('.tb-card');
  if (!card || event.ctrlKey || event.metaKey || event.altKey) return;
  const cards = [...element.querySelectorAll('.tb-card')];
  const place = cards.indexOf(card);
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  if (step && event.target === card) {
    event.preventDefault();
    (cards[place + step] || card).focus();
  } else if (event.key === 'y' || event.key === 'n') {
    event.preventDefault();
    const buttons = card.querySelectorAll('button[data-mark]');
    element.dataset.focus = card.nextElementSibling ? card.nextElementSibling.dataset.row : card.dataset.row;
    buttons[event.key === 'y' ? 0 : 1].click();
  }
});
watch('value', () => {
  const card = element.dataset.focus && element.querySelector(`.tb-card[data-row="${element.dataset.focus}"]`);
  delete element.dataset.focus;
  if (card) card.focus();
});
"""


class Card(NamedTuple):
    """A row of the table in a grid.

    Attributes:
        row: its index.
        path: of its file.
        start: in seconds.
        end: in seconds.
        remark: what else is to be said of it.
        pressed: which of the grid's marks it has, if any.
    """

    row: int
    path: str
    start: float
    end: float
    remark: str
    pressed: str | None = None


def grid(cards: Sequence[Card], marks: Mapping[str, str], label: str) -> str:
    """Cards with a spectrogram, a player and two buttons.

    Args:
        cards: in order.
        marks: what the buttons tell the server, and what stands on them.
        label: what the grid shows, for those who cannot see it.
    """
    return (
        f'<div class="tb-grid" role="list" aria-label="{escape(label)}">{"".join(_card(c, marks) for c in cards)}</div>'
    )


def _card(card: Card, marks: Mapping[str, str]) -> str:
    name = escape(shown_name(card.path))
    place = f"{name}, {card.start:.1f} to {card.end:.1f} s"
    buttons = "".join(_button(card, mark, escape(words), place) for mark, words in marks.items())
    return (
        f'<div class="tb-card" role="listitem" tabindex="0" data-row="{card.row}" aria-label="{place}">'
        f'<img src="/rows/{card.row}/spectrogram.png" alt="Spectrogram of {place}" loading="lazy">'
        f"<p><strong>{name}</strong><br>{card.start:.1f}–{card.end:.1f} s · row {card.row}<br>{escape(card.remark)}</p>"
        f'<audio controls preload="none" src="/rows/{card.row}/sound.wav" aria-label="Sound of {place}"></audio>'
        f"<div>{buttons}</div></div>"
    )


def _button(card: Card, mark: str, words: str, place: str) -> str:
    pressed = str(card.pressed == mark).lower()
    data = f'data-row="{card.row}" data-mark="{mark}"'
    return f'<button type="button" {data} aria-pressed="{pressed}" aria-label="{words}: {place}">{words}</button>'


def table(head: Sequence[str], rows: Iterable[Sequence[str | float]], caption: str) -> str:
    """Rows of texts and numbers."""
    names = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    lines = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return (
        f'<div class="tb-scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table class="tb-table">'
        f"<caption>{escape(caption)}</caption><thead><tr>{names}</tr></thead><tbody>{lines}</tbody></table></div>"
    )


def _cell(value: str | float) -> str:
    if isinstance(value, str):
        return f"<td>{escape(one_line(value))}</td>"
    return f'<td class="number">{"–" if value != value else f"{value:.3f}"}</td>'


def links(key: str, names: Iterable[str]) -> str:
    """Files to download."""
    items = (
        f'<li><a href="/results/{key}/{escape(name)}" download="{escape(name)}">{escape(name)}</a></li>'
        for name in names
    )
    return f'<ul class="tb-links" aria-label="Downloads">{"".join(items)}</ul>'


def picture(content: bytes, alternative: str) -> str:
    """A PNG."""
    data = base64.b64encode(content).decode()
    return f'<img class="tb-picture" src="data:image/png;base64,{data}" alt="{escape(alternative)}">'


def problem(message: str) -> str:
    """What is wrong, so that a screen reader says it at once."""
    return f'<p class="tb-error" role="alert">{escape(one_line(message))}</p>'


def note(message: str) -> str:
    """What a person should know."""
    return f'<p class="tb-note" role="status">{escape(one_line(message))}</p>'


def shown_name(path: str) -> str:
    """A file's name without its folders."""
    return one_line(readable(os.path.basename(path)))
