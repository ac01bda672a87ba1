# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""The page: tabs for images, tasks, inpainting and chat, and the history of the visit."""

from __future__ import annotations

import gradio as gr

from ..host import EngineHost
from .chat_tab import add_chat_tab
from .history import History, add_history_tab
from .image_tab import add_image_tab
from .inpaint_tab import add_inpaint_tab
from .task_tab import add_task_tab


# Files of results are removed from the disk after a day.
DAY = 24 * 60 * 60

CSS = """
.gradio-container {width: 100% !important; max-width: 1280px !important; margin: 0 auto;}
#sizes .grid-container {grid-template-columns: repeat(auto-fill, minmax(68px, 1fr)) !important; gap: 4px;}
#sizes .caption-label {font-size: 10px; padding: 1px 3px; left: 2px; bottom: 2px; max-width: calc(100% - 4px);}
#sizes .grid-wrap {min-height: 0; max-height: 240px;}
#images .grid-wrap, #history .grid-wrap {min-height: 160px; max-height: none;}
#history .grid-container {grid-template-columns: repeat(auto-fill, minmax(130px, 1fr)) !important;}
.result img {object-fit: contain;}
[id$=settings] .empty {min-height: 48px;}
.slider, #history {max-width: 100%; overflow: hidden;}
footer {display: none !important;}
@media (max-width: 640px) {
  /* The result comes after the buttons, and what else there is to set after the result. */
  .controls {display: contents !important;}
  .controls > *, .results {flex: 1 1 100% !important;}
  .results {order: 1;}
  .controls > .row ~ * {order: 2;}
  .gradio-container > * {padding: 8px !important;}
  .tab-container button {padding: 0 9px !important;}
  #chat {height: 60vh !important;}
}
"""


def build_demo(host: EngineHost, title: str = "Lumina-mGPT") -> gr.Blocks:
    """
    The page of a host, whose batch all its visitors share.

    Args:
        host ([`EngineHost`]): Runs the model.
        title (`str`, defaults to `"Lumina-mGPT"`): What stands above it.
    """
    with gr.Blocks(title=title, delete_cache=(60 * 60, DAY), analytics_enabled=False) as demo:
        gr.Markdown(f"# {title}")
        history = gr.State(History)
        tabs = [add_image_tab, add_task_tab, add_inpaint_tab, add_chat_tab]
        if not host.pipe.family.tasks:
            tabs.remove(add_task_tab)
        with gr.Tabs():
            finished = [add(host, history) for add in tabs]
            add_history_tab(history, finished)
    # Whoever comes waits in the host, which knows how much fits.
    demo.queue(default_concurrency_limit=None, max_size=1000)
    return demo


def launch(demo: gr.Blocks, address: str = "127.0.0.1", port: int = 7860, block: bool = True) -> str:
    """
    Serve the page.

    Args:
        demo (`gr.Blocks`): From [`build_demo`].
        address (`str`, defaults to `"127.0.0.1"`), port (`int`, defaults to 7860): Where to listen; 0 for any port.
        block (`bool`, defaults to `True`): Whether to return only at the end.

    Returns:
        `str`: Its URL.
    """
    _, url, _ = demo.launch(
        server_name=address,
        server_port=port or None,
        prevent_thread_lock=not block,
        share=False,
        quiet=not block,
        css=CSS,
        theme=gr.themes.Soft(),
        ssr_mode=False,
        max_file_size="32mb",
        show_error=False,
    )
    return url
