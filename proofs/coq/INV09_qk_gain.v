(** Attention scores have the declared golden gain for every head dimension, and depend on q and on k exactly where their
    second difference says so. *)

Require Import Reals Lra Lia Qreals.
From Karat Require Import Carrier Sums Golden.
From Karat Require Constants.

Section Formulas.
Context {K : Carrier}.
Local Open Scope carrier_scope.

Definition score_scale (gain root : K) : K := gain / root.

Definition score (n : nat) (q k : nat -> K) (scale : K) : K := scale * sum n (fun i => q i * k i).

Definition interaction (near right below across : K) : K := (near - right) - (below - across).

(** The guard's margin: the gain between its ends low and high, the deviation and the spread within their bounds. *)
Definition margin (low high gain tolerance deviation spread floor : K) : K :=
  let off := maximum (low - gain) (gain - high) in
  let rest := minimum (tolerance - deviation) (spread - floor) in
  if off <=? zero then rest else opp off.
End Formulas.

Local Open Scope R_scope.

Ltac ring_R := match goal with |- ?a = ?b => change (@eq R a b); cbn -[sum]; ring end.

(** *** The golden gain *)

Theorem golden_gain_value : phi ^ 2 = phi + 1 /\ phi ^ 2 = (3 + sqrt 5) / 2.
Proof. split; [exact phi_squared|]. rewrite phi_squared. unfold phi. lra. Qed.

(** The ends that the guard declares, two doubles 2^-51 apart, enclose phi^2. *)
Theorem golden_gain_enclosed :
  Q2R Constants.qk_gain_low < phi ^ 2 < Q2R Constants.qk_gain_high /\
  Q2R Constants.qk_gain_high - Q2R Constants.qk_gain_low = / 2 ^ 51.
Proof.
  assert (E : phi ^ 2 = (3 + sqrt 5) / 2) by apply golden_gain_value. rewrite E. pose proof sqrt5_squared as S.
  pose proof (sqrt_pos 5) as P. unfold Q2R, Constants.qk_gain_low, Constants.qk_gain_high; simpl Qnum; simpl Qden.
  split; [split|].
  - assert (2 * (5895288448088659 * / 2251799813685248) - 3 < sqrt 5); [|lra].
    apply Rsqr_incrst_0; [unfold Rsqr; rewrite S; lra | lra | exact P].
  - assert (sqrt 5 < 2 * (1473822112022165 * / 562949953421312) - 3); [|lra].
    apply Rsqr_incrst_0; [unfold Rsqr; rewrite S; lra | exact P | lra].
  - rewrite <- (Rinv_inv (2 ^ 51)). lra.
Qed.

(** *** The scale *)

(** The scale times the root of the head dimension is the gain, for every gain and every d > 0. *)
Theorem scale_times_root : forall g d : R,
  0 < d -> score_scale (K := on_R) g (sqrt d) * sqrt d = g /\ score_scale (K := on_R) g (sqrt d) ^ 2 * d = g ^ 2.
Proof.
  intros g d Hd. pose proof (sqrt_lt_R0 d Hd) as Root.
  assert (E : score_scale (K := on_R) g (sqrt d) * sqrt d = g).
  { change (g / sqrt d * sqrt d = g). field. lra. }
  split; [exact E|]. rewrite <- E at 2. rewrite <- (sqrt_sqrt d) at 2 by lra. ring_R.
Qed.

Lemma scale_times_root_satisfiable : exists g d : R, 0 < d.
Proof. exists (phi ^ 2), 64. lra. Qed.

Lemma score_R (n : nat) (q k : nat -> R) (scale : R) :
  score (K := on_R) n q k scale = scale * total n (fun i => q i * k i).
Proof. reflexivity. Qed.

(** With gain g the score is g · q.k / sqrt n for a head of n coordinates: for every n >= 1. *)
Theorem score_has_the_gain : forall (n : nat) (q k : nat -> R) (g : R),
  (0 < n)%nat ->
  score (K := on_R) n q k (score_scale (K := on_R) g (sqrt (INR n)))
  = g * (total n (fun i => q i * k i) / sqrt (INR n)).
Proof.
  intros n q k g Hn. rewrite score_R. pose proof (sqrt_lt_R0 (INR n) (lt_0_INR n Hn)).
  generalize (total n (fun i => q i * k i)) as dot. intro dot. change (g / sqrt (INR n) * dot = g * (dot / sqrt (INR n))).
  field. lra.
Qed.

Lemma score_has_the_gain_satisfiable : exists (n : nat) (q k : nat -> R) (g : R), (0 < n)%nat.
Proof. exists 64%nat, INR, INR, (phi ^ 2). lia. Qed.

(** *** Scores are bilinear *)

Theorem score_is_bilinear : forall (n : nat) (q r k m : nat -> R) (a s : R),
  score (K := on_R) n (fun i => a * q i + r i) k s = a * score (K := on_R) n q k s + score (K := on_R) n r k s /\
  score (K := on_R) n q (fun i => a * k i + m i) s = a * score (K := on_R) n q k s + score (K := on_R) n q m s /\
  score (K := on_R) n q k (a * s)%R = a * score (K := on_R) n q k s /\
  score (K := on_R) n q k s = score (K := on_R) n k q s.
Proof.
  intros n q r k m a s. rewrite !score_R. repeat split.
  - rewrite (total_ext n _ (fun i => a * (q i * k i) + r i * k i)), total_plus, total_scal by (intros; ring_R). ring_R.
  - rewrite (total_ext n _ (fun i => a * (q i * k i) + q i * m i)), total_plus, total_scal by (intros; ring_R). ring_R.
  - ring_R.
  - f_equal. apply total_ext. intros. ring_R.
Qed.

Lemma cauchy_schwarz (n : nat) (x y : nat -> R) :
  total n (fun i => x i * y i) ^ 2 <= total n (fun i => x i ^ 2) * total n (fun i => y i ^ 2).
Proof.
  induction n as [|n IH]; [rewrite !total_0; simpl; lra|]. rewrite !total_S.
  assert (Square : 0 <= total n (fun i => (y n * x i - x n * y i) ^ 2)).
  { apply total_nonneg. intros. apply pow2_ge_0. }
  rewrite (total_ext n _ (fun i => (y n ^ 2 * x i ^ 2 - 2 * (x n * y n) * (x i * y i)) + x n ^ 2 * y i ^ 2)), total_plus,
    total_minus, !total_scal in Square by (intros; ring_R).
  revert IH Square. generalize (total n (fun i => x i * y i)) as A, (total n (fun i => x i ^ 2)) as B,
    (total n (fun i => y i ^ 2)) as C.
  intros C B A IH Square. change (num on_R) with R in *.
  replace ((B + x n ^ 2) * (C + y n ^ 2)) with (B * C + (y n ^ 2 * B + x n ^ 2 * C) + (x n * y n) ^ 2) by ring.
  replace ((A + x n * y n) ^ 2) with (A ^ 2 + 2 * (x n * y n) * A + (x n * y n) ^ 2) by ring. lra.
Qed.

(** No score exceeds what the lengths of q and k allow: |score| <= |scale| |q| |k|, squared. *)
Theorem score_is_bounded : forall (n : nat) (q k : nat -> R) (s : R),
  score (K := on_R) n q k s ^ 2 <= s ^ 2 * (total n (fun i => q i ^ 2) * total n (fun i => k i ^ 2)).
Proof.
  intros. rewrite score_R, Rpow_mult_distr. apply Rmult_le_compat_l; [apply pow2_ge_0 | apply cauchy_schwarz].
Qed.

(** *** The second difference *)

(** Of the four scores of two q and two k it is scale · (q - r).(k - m), for every head dimension. *)
Theorem interaction_factors : forall (n : nat) (q r k m : nat -> R) (s : R),
  interaction (K := on_R) (score (K := on_R) n q k s) (score (K := on_R) n q m s)
    (score (K := on_R) n r k s) (score (K := on_R) n r m s)
  = s * total n (fun i => (q i - r i) * (k i - m i)).
Proof.
  intros n q r k m s. unfold interaction. rewrite !score_R.
  rewrite (total_ext n (fun i => (q i - r i) * (k i - m i))
    (fun i => (q i * k i - q i * m i) - (r i * k i - r i * m i))), !total_minus by (intros; ring_R).
  ring_R.
Qed.

Lemma total_against_places (n : nat) (d : nat -> R) (s : R) : s <> 0 ->
  ((forall k m : nat -> R, s * total n (fun i => d i * (k i - m i)) = 0) <-> forall i, (i < n)%nat -> d i = 0).
Proof.
  intro Hs. split.
  - intros H i Hi. specialize (H (fun j => if Nat.eqb j i then 1 else 0) (fun _ => 0)).
    rewrite (total_ext n _ (fun j => if Nat.eqb j i then d i else 0)), total_pick in H.
    + apply Rmult_integral in H. tauto.
    + exact Hi.
    + intros j _. destruct (Nat.eqb_spec j i) as [->|]; ring_R.
  - intros H k m. rewrite (total_ext n _ (fun _ => 0)), total_zero by (intros i Hi; rewrite (H i Hi); ring_R). ring_R.
Qed.

(** For a scale that is not 0 no pair of keys tells q from r exactly where q and r are the same. *)
Theorem scores_tell_queries_apart : forall (n : nat) (q r : nat -> R) (s : R),
  s <> 0 ->
  ((forall k m : nat -> R, interaction (K := on_R) (score (K := on_R) n q k s) (score (K := on_R) n q m s)
      (score (K := on_R) n r k s) (score (K := on_R) n r m s) = 0)
   <-> forall i, (i < n)%nat -> q i = r i).
Proof.
  intros n q r s Hs. pose proof (total_against_places n (fun i => q i - r i) s Hs) as [Only If]. split.
  - intros H i Hi. apply Rminus_diag_uniq. apply Only; [|exact Hi]. intros k m. now rewrite <- interaction_factors.
  - intros H k m. rewrite interaction_factors. apply If. intros i Hi. rewrite (H i Hi). ring_R.
Qed.

Lemma scores_tell_queries_apart_satisfiable : exists (n : nat) (q r : nat -> R) (s : R), s <> 0.
Proof. exists 2%nat, INR, (fun _ => 1), (/ 2). lra. Qed.

(** And no pair of queries tells k from m exactly where k and m are the same. *)
Theorem scores_tell_keys_apart : forall (n : nat) (k m : nat -> R) (s : R),
  s <> 0 ->
  ((forall q r : nat -> R, interaction (K := on_R) (score (K := on_R) n q k s) (score (K := on_R) n q m s)
      (score (K := on_R) n r k s) (score (K := on_R) n r m s) = 0)
   <-> forall i, (i < n)%nat -> k i = m i).
Proof.
  intros n k m s Hs. pose proof (total_against_places n (fun i => k i - m i) s Hs) as [Only If].
  assert (Swap : forall q r : nat -> R,
      total n (fun i => (q i - r i) * (k i - m i)) = total n (fun i => (k i - m i) * (q i - r i)))
    by (intros; apply total_ext; intros; ring_R).
  split.
  - intros H i Hi. apply Rminus_diag_uniq. apply Only; [|exact Hi]. intros q r.
    rewrite <- Swap. now rewrite <- interaction_factors.
  - intros H q r. rewrite interaction_factors, Swap. apply If. intros i Hi. rewrite (H i Hi). ring_R.
Qed.

Lemma scores_tell_keys_apart_satisfiable : exists (n : nat) (k m : nat -> R) (s : R), s <> 0.
Proof. exists 2%nat, INR, (fun _ => 1), (/ 2). lra. Qed.

(** *** The guard's margin *)

(** It is >= 0 exactly where the gain is between its ends, the deviation within the tolerance and the spread at least the
    floor. *)
Theorem margin_accepts : forall low high gain tolerance deviation spread floor : R,
  0 <= margin (K := on_R) low high gain tolerance deviation spread floor <->
  low <= gain <= high /\ deviation <= tolerance /\ floor <= spread.
Proof. intros. unfold margin, opp, zero, maximum, minimum. compare; lra. Qed.
